// Executes CUDA C++ kernels, unchanged, on the CPU: a fiber for every CUDA thread, so that a kernel is tested
// on machines without a GPU. What a GPU would forgive most of the time is made to show here:
//   a missing barrier      fibers run from barrier to barrier, and who goes first is shuffled by a seed
//   a missing wait         cp.async copies nothing before the wait that covers it
//   uninitialised memory   shared memory starts as NaNs; so does Memory
//   out of bounds          memory ends at an unmapped page, under AddressSanitizer at its very end
//   a deadlock             an error that says who waits where
// Include it before the kernels and compile with CONVGRU_CUDA_ON_HOST defined; csrc/cuda/ptx.cuh then takes
// the instructions from here.
#pragma once
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  unsigned count() const { return x * y * z; }
};

namespace cuda_on_host {

constexpr int kWarp = 32;
constexpr size_t kStackBytes = 256 << 10;

// Memory whose end is guarded, filled with bytes 0xFF: NaNs in every floating-point type.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(bytes) {
#if defined(__SANITIZE_ADDRESS__)
    mapped_ = 0;
    base_ = ::operator new(bytes + (bytes == 0), std::align_val_t(16));
    start_ = static_cast<unsigned char*>(base_);
#else
    // As far towards the page behind as the alignment of a vector load allows.
    const size_t page = sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page + 1;
    mapped_ = pages * page;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::bad_alloc();
    unsigned char* end = static_cast<unsigned char*>(base_) + mapped_ - page;
    mprotect(end, page, PROT_NONE);
    start_ = end - (bytes + 15) / 16 * 16;
#endif
    memset(start_, 0xFF, bytes);
  }
  Memory(Memory&& other) noexcept
      : bytes_(other.bytes_),
        mapped_(other.mapped_),
        base_(std::exchange(other.base_, nullptr)),
        start_(other.start_) {}
  Memory& operator=(Memory&&) = delete;
  ~Memory() {
    if (base_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
    ::operator delete(base_, std::align_val_t(16));
#else
    munmap(base_, mapped_);
#endif
  }
  unsigned char* data() const { return start_; }
  size_t size() const { return bytes_; }

 private:
  size_t bytes_, mapped_;
  void* base_;
  unsigned char* start_;
};

// A flow of control with a stack of its own. The system's ucontext asks the kernel for the signal mask at
// every switch, which takes longer than most of what is between two; so where it can be, the switch is ours:
// the registers that a function has to preserve, on the stack that is left.
#if defined(__x86_64__)
struct Context {
  void* stack_pointer = nullptr;

  void start(unsigned char* stack, void (*entry)()) {
    // As if `entry` had been called and had called the switch.
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + kStackBytes) / 16 * 16);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int preserved = 0; preserved < 6; ++preserved) *--top = nullptr;
    stack_pointer = top;
  }
};
__attribute__((naked, noinline)) inline void switch_context(Context&, const Context&) {
  asm("push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
      "mov %rsp, (%rdi)\n mov (%rsi), %rsp\n"
      "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret");
}
#else
struct Context {
  ucontext_t context;

  void start(unsigned char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
};
inline void switch_context(Context& from, const Context& to) {
  swapcontext(&from.context, &to.context);
}
#endif

// Where in the source a thread waits.
struct Place {
  const char *kind = "", *file = "";
  int line = 0;
  bool operator==(const Place& other) const {
    return line == other.line && strcmp(file, other.file) == 0 && strcmp(kind, other.kind) == 0;
  }
  std::string words() const { return std::string(kind) + " at " + file + ":" + std::to_string(line); }
};

// Where threads meet. `place` is that of the first of them.
struct Barrier {
  int arrived = 0;
  long generation = 0;
  Place place;
};

struct Copy {
  void* to;
  const void* from;
  int bytes, read;  // the rest is zeros
};

// wgmma: sums += a times b, the lanes of a warp together, one for every 16 rows of a; b by its descriptor.
struct Product {
  float* sums;
  const uint32_t* a;
  uint64_t b;
  int columns;
  float (*widen)(uint16_t);
};

// mbarrier: passed, round after round, when all have arrived and all bytes that were expected are copied.
struct CopyBarrier {
  unsigned count = 0, missing = 0;  // threads; in this round
  long bytes = 0;                   // expected and not copied
  unsigned round = 0;
  std::vector<Copy> copies;  // under way
};

struct Block;

struct Fiber {
  Context context;
  std::unique_ptr<Memory> stack;
  dim3 thread;
  Block* block = nullptr;
  int number = 0;  // within the block
  bool done = false;
  Barrier* barrier = nullptr;
  long generation = 0;
  std::function<bool()> condition;  // of a spinning thread
  Place place;
  int exchanges = 0;  // so far
  std::vector<Copy> open_group;
  std::vector<std::vector<Copy>> groups;         // committed, oldest first
  std::vector<Product> open_products, products;  // before commit, after
  bool initialised = false;                      // a barrier, since the last async_proxy_fence
  bool fenced = false;                           // by warpgroup_fence, since the last wait
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif

  int lane() const { return number % kWarp; }
  int warp() const { return number / kWarp; }
  bool ready() const {
    if (condition) return condition();
    return barrier == nullptr || barrier->generation != generation;
  }
};

struct Warp {
  Barrier barrier;
  int live = 0;
  // What its lanes exchange; for one exchange after the other, so that who is slow still finds the last.
  alignas(16) unsigned char exchange[2][kWarp][64];
};

struct Block {
  dim3 index;
  Barrier barrier;
  int live = 0;
  std::vector<Warp> warps;
  std::map<const void*, CopyBarrier> barriers;  // by their address
  int copies = 0;                               // in bulk, so far
  Memory shared;
};

struct Machine {
  unsigned seed = 0;
  int resident_blocks = 24;  // that are there at the same time, if they may wait for each other
  double least_operations_of_library = 1e300;  // of csrc/cuda/device.h
  bool warpgroups = false;                     // whether it has wgmma, and is to use it
  int cooperative_launches = 0;                // so far
  dim3 grid, block;
  Fiber* current = nullptr;
  Context scheduler;
#if defined(__SANITIZE_ADDRESS__)
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
#endif
  std::function<void()> kernel;
  Barrier grid_barrier;
  int grid_threads = 0;
  bool cooperative = false;
  std::string error;
  std::vector<std::unique_ptr<Fiber>> pool;
};
inline Machine machine;

inline void switch_to_scheduler(bool last = false) {
  Fiber& fiber = *machine.current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(
      last ? nullptr : &fiber.fake_stack, machine.scheduler_stack, machine.scheduler_stack_size);
#endif
  (void)last;
  switch_context(fiber.context, machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

inline void switch_to(Fiber& fiber) {
  machine.current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.scheduler_fake_stack, fiber.stack->data(), kStackBytes);
#endif
  switch_context(machine.scheduler, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.scheduler_fake_stack, nullptr, nullptr);
#endif
}

// An error of the kernel: the launch ends with it.
[[noreturn]] inline void fail(const std::string& what) {
  Fiber& fiber = *machine.current;
  std::ostringstream words;
  words << "block (" << fiber.block->index.x << "," << fiber.block->index.y << "," << fiber.block->index.z
        << ") thread " << fiber.number << ": " << what;
  machine.error = words.str();
  for (;;) switch_to_scheduler();
}

inline void meet(Barrier& barrier, int expected, const Place& place) {
  if (barrier.arrived == 0)
    barrier.place = place;
  else if (!(barrier.place == place))
    fail("waits at " + place.words() + " while others wait at " + barrier.place.words());
  if (++barrier.arrived >= expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  Fiber& fiber = *machine.current;
  fiber.barrier = &barrier;
  fiber.generation = barrier.generation;
  fiber.place = place;
  switch_to_scheduler();
  fiber.barrier = nullptr;
}

// A thread that returns is no longer expected by its block or warp. (A barrier of the grid is memory that
// every thread has to arrive at.)
inline void leave(Barrier& barrier, int& live) {
  --live;
  if (barrier.arrived > 0 && barrier.arrived >= live) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
}

inline void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.scheduler_stack, &machine.scheduler_stack_size);
#endif
  machine.kernel();
  Fiber& fiber = *machine.current;
  bool pending = !fiber.open_group.empty();
  for (const auto& group : fiber.groups) pending |= !group.empty();
  if (pending) fail("returns while copies by cp.async are under way");
  for (const auto& [address, barrier] : fiber.block->barriers)
    if (fiber.block->live == 1 && !barrier.copies.empty()) fail("returns while bulk copies are under way");
  if (!fiber.open_products.empty() || !fiber.products.empty()) fail("returns while products are under way");
  fiber.done = true;
  leave(fiber.block->warps[fiber.warp()].barrier, fiber.block->warps[fiber.warp()].live);
  leave(fiber.block->barrier, fiber.block->live);
  switch_to_scheduler(/*last=*/true);
}

inline std::string who_waits(const std::vector<Fiber*>& fibers) {
  std::map<std::string, int> places;
  for (const Fiber* fiber : fibers)
    if (!fiber->done) ++places[fiber->place.words()];
  std::ostringstream words;
  words << "deadlock:";
  for (const auto& [place, count] : places) words << " " << count << " threads wait in " << place << ";";
  return words.str();
}

// A warp's fibers run on for as long as any of them can, most of the time: their stacks then stay in the
// cache. Which warp goes first, and which of its fibers, is shuffled.
inline void run(std::vector<Block*> blocks, std::mt19937& random) {
  const int threads = machine.block.count();
  std::vector<Fiber*> fibers;
  std::vector<std::vector<Fiber*>> warps;
  machine.grid_barrier = {};
  for (Block* block : blocks) {
    block->live = threads;
    block->warps.assign((threads + kWarp - 1) / kWarp, {});
    for (int t = 0; t < threads; ++t) {
      if (machine.pool.size() == fibers.size()) {
        machine.pool.push_back(std::make_unique<Fiber>());
        machine.pool.back()->stack = std::make_unique<Memory>(kStackBytes);
      }
      Fiber& fiber = *machine.pool[fibers.size()];
      fiber.thread = dim3(
          t % machine.block.x, t / machine.block.x % machine.block.y,
          t / (machine.block.x * machine.block.y));
      fiber.block = block;
      fiber.number = t;
      fiber.done = false;
      fiber.barrier = nullptr;
      fiber.condition = nullptr;
      fiber.exchanges = 0;
      fiber.open_group.clear();
      fiber.groups.clear();
      fiber.open_products.clear();
      fiber.products.clear();
      fiber.initialised = fiber.fenced = false;
      ++block->warps[fiber.warp()].live;
      fiber.context.start(fiber.stack->data(), run_fiber);
      fibers.push_back(&fiber);
      if (fiber.lane() == 0) warps.emplace_back();
      warps.back().push_back(&fiber);
    }
  }
  machine.grid_threads = static_cast<int>(fibers.size());
  size_t left = fibers.size();
  const auto run_each = [&](const std::vector<Fiber*>& warp) {
    bool progress = false;
    for (Fiber* fiber : warp) {
      if (fiber->done || !fiber->ready()) continue;
      fiber->condition = nullptr;
      switch_to(*fiber);
      if (!machine.error.empty()) throw std::runtime_error(std::exchange(machine.error, {}));
      progress = true;
      left -= fiber->done;
    }
    return progress;
  };
  while (left > 0) {
    std::shuffle(warps.begin(), warps.end(), random);
    bool progress = false;
    for (std::vector<Fiber*>& warp : warps) {
      std::shuffle(warp.begin(), warp.end(), random);
      while (run_each(warp)) {
        progress = true;
        if (random() % 16 == 0) break;
      }
    }
    if (!progress) throw std::runtime_error(who_waits(fibers));
  }
}

// Runs a kernel to its end. Throws std::runtime_error for what went wrong in it. cooperative: all blocks are
// there at the same time and may wait for each other; else one after the other, in any order.
template <class Kernel, class... Args>
void launch(bool cooperative, Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  machine.grid = grid;
  machine.block = block;
  machine.cooperative = cooperative;
  machine.kernel = [=] { kernel(args...); };
  std::mt19937 random(machine.seed);
  std::vector<dim3> order;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) order.emplace_back(x, y, z);
  std::shuffle(order.begin(), order.end(), random);
  std::vector<std::unique_ptr<Block>> blocks;
  for (const dim3& index : order) {
    blocks.push_back(std::unique_ptr<Block>(new Block{index, {}, 0, {}, {}, 0, Memory(shared_bytes)}));
    if (cooperative) continue;
    run({blocks.back().get()}, random);
    blocks.clear();
  }
  if (!cooperative) return;
  ++machine.cooperative_launches;
  std::vector<Block*> all;
  for (const auto& each : blocks) all.push_back(each.get());
  run(all, random);
}

// The block's dynamic shared memory.
inline unsigned char* dynamic_shared() {
  return machine.current->block->shared.data();
}

inline void sync_threads(const char* file, int line) {
  Block& block = *machine.current->block;
  meet(block.barrier, block.live, {"__syncthreads", file, line});
}
inline void sync_warp(unsigned mask, const char* file, int line) {
  Warp& warp = machine.current->block->warps[machine.current->warp()];
  if (mask != 0xFFFFFFFFu) fail("a part of a warp is not supported here");
  meet(warp.barrier, warp.live, {"__syncwarp", file, line});
}
inline void sync_grid(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!machine.cooperative) fail("a barrier of the grid in a launch that is not cooperative");
  meet(machine.grid_barrier, machine.grid_threads, {"sync_grid", file, line});
}
// Waits until another block has made the condition true.
inline void spin_until(
    std::function<bool()> condition, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!machine.cooperative) fail("waits for another block in a launch that is not cooperative");
  machine.current->place = {"spin_until", file, line};
  machine.current->condition = std::move(condition);
  switch_to_scheduler();
}

// Every lane of the warp gives a value and sees those of all; f(value of a lane) -> result.
template <class T, class F>
auto exchange(const T& value, const char* what, const F& f) {
  static_assert(sizeof(T) <= 64 && alignof(T) <= 16);
  Fiber& fiber = *machine.current;
  Warp& warp = fiber.block->warps[fiber.warp()];
  auto& lanes = warp.exchange[fiber.exchanges++ % 2];
  memcpy(lanes[fiber.lane()], &value, sizeof value);
  meet(warp.barrier, warp.live, {what, "a warp's exchange", 0});
  return f([&](int lane) -> const T& { return *reinterpret_cast<const T*>(lanes[lane]); });
}

// cp.async: bytes 4, 8 or 16, of which the first `read` are read.
inline void copy_async(void* to, const void* from, int bytes, int read) {
  if (bytes != 4 && bytes != 8 && bytes != 16) fail("cp.async: expected 4, 8 or 16 bytes");
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
      (read > 0 && reinterpret_cast<uintptr_t>(from) % bytes != 0))
    fail("cp.async: an address is not a multiple of the size");
  machine.current->open_group.push_back({to, from, bytes, read});
}
inline void copy_async_commit() {
  Fiber& fiber = *machine.current;
  fiber.groups.push_back(std::move(fiber.open_group));
  fiber.open_group.clear();
}
// Until at most so many groups are under way.
inline void copy_async_wait(size_t most) {
  Fiber& fiber = *machine.current;
  while (fiber.groups.size() > most) {
    for (const Copy& copy : fiber.groups.front()) {
      memset(copy.to, 0, copy.bytes);
      if (copy.read > 0) memcpy(copy.to, copy.from, copy.read);
    }
    fiber.groups.erase(fiber.groups.begin());
  }
}

// ldmatrix.x4: lane 8i+r gives the address of row r (8 elements of 16 bits) of matrix i; a lane gets of every
// matrix the elements 2c and 2c+1 of row r where lane = 4r + c, of the transposed if so asked.
struct Four {
  uint32_t registers[4];
};
inline Four load_matrices(const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row is not aligned to 16 bytes");
  return exchange(row, "ldmatrix", [&](const auto& of) {
    const int lane = machine.current->lane(), r = lane / 4, c = 2 * (lane % 4);
    Four four;
    for (int i = 0; i < 4; ++i) {
      uint16_t pair[2];
      for (int j = 0; j < 2; ++j) {
        const int from_row = transposed ? c + j : r, from_column = transposed ? r : c + j;
        memcpy(&pair[j], static_cast<const uint16_t*>(of(8 * i + from_row)) + from_column, sizeof pair[j]);
      }
      memcpy(&four.registers[i], pair, sizeof pair);
    }
    return four;
  });
}

struct Sums {
  float values[4];
};

// mma.m16n8k16 and m16n8k8: a register holds kPerRegister neighbours of a row of a or a column of b, two or
// one, which widen(register, which) makes floats of. Lane 4g+t has of a rows g and g+8, of b column g, in
// either half of the depth its t-th register.
template <int kPerRegister, class Widen>
Sums multiply(const Sums& c, const uint32_t (&a)[4], const uint32_t (&b)[2], const Widen& widen) {
  struct Given {
    float a[4][kPerRegister], b[2][kPerRegister];
  } given;
  for (int which = 0; which < kPerRegister; ++which) {
    for (int i = 0; i < 4; ++i) given.a[i][which] = widen(a[i], which);
    for (int i = 0; i < 2; ++i) given.b[i][which] = widen(b[i], which);
  }
  return exchange(given, "mma", [&](const auto& of) {
    const int g = machine.current->lane() / 4, t = machine.current->lane() % 4;
    Sums d = c;
    for (int half = 0; half < 2; ++half)
      for (int lane = 0; lane < 4; ++lane)
        for (int i = 0; i < 4; ++i) {
          const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
          const Given &left = of(4 * (row % 8) + lane), &right = of(4 * column + lane);
          for (int which = 0; which < kPerRegister; ++which)
            d.values[i] += left.a[row / 8 + 2 * half][which] * right.b[half][which];
        }
    return d;
  });
}

inline CopyBarrier& copy_barrier(const void* address) {
  auto& barriers = machine.current->block->barriers;
  if (barriers.count(address) == 0) fail("mbarrier: used before it is initialised");
  return barriers[address];
}
inline void end_round_if_complete(CopyBarrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.count;
  ++barrier.round;
}
inline void copy_now(CopyBarrier& barrier) {
  for (const Copy& copy : std::exchange(barrier.copies, {})) {
    memcpy(copy.to, copy.from, copy.bytes);
    barrier.bytes -= copy.bytes;
  }
  if (barrier.bytes < 0) fail("mbarrier: copied other bytes than it expected");
  end_round_if_complete(barrier);
}

inline void barrier_init(const void* address, unsigned count) {
  if (reinterpret_cast<uintptr_t>(address) % 8 != 0) fail("mbarrier: not aligned to 8 bytes");
  machine.current->block->barriers[address] = {count, count, 0, 0, {}};
  machine.current->initialised = true;
}
inline void barrier_expect(const void* address, unsigned bytes) {
  CopyBarrier& barrier = copy_barrier(address);
  barrier.bytes += bytes;
  --barrier.missing;
  end_round_if_complete(barrier);
}
// Done as late as can be, or as early.
inline void copy_bulk(void* to, const void* from, unsigned bytes, const void* address) {
  Fiber& fiber = *machine.current;
  if (fiber.initialised) fail("cp.async.bulk: no fence.proxy.async after mbarrier.init");
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes) % 16 != 0)
    fail("cp.async.bulk: an address or the size is not a multiple of 16");
  CopyBarrier& barrier = copy_barrier(address);
  barrier.copies.push_back({to, from, static_cast<int>(bytes), static_cast<int>(bytes)});
  if ((machine.seed + fiber.block->copies++) % 2 == 0) copy_now(barrier);
}
inline void barrier_wait(
    const void* address, unsigned parity, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  CopyBarrier& barrier = copy_barrier(address);
  const auto passed = [&barrier, parity] { return barrier.round % 2 != parity; };
  if (!passed()) copy_now(barrier);
  if (passed()) return;
  machine.current->place = {"barrier_wait", file, line};
  machine.current->condition = passed;
  switch_to_scheduler();
}

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - dynamic_shared());
}

inline void async_proxy_fence() {
  machine.current->initialised = false;
}
inline void warpgroup_fence() {
  machine.current->fenced = true;
}

// Registers and shared memory are read, and the sums written, now.
inline void multiply_now(const Product& product) {
  struct Given {
    uint32_t a[4];
  } given;
  memcpy(given.a, product.a, sizeof given.a);
  const auto field = [&](int shift) { return static_cast<size_t>(product.b >> shift & 0x3FFF) << 4; };
  const size_t start = field(0), of_8_channels = field(16), of_8_columns = field(32);
  const Memory& shared = machine.current->block->shared;
  if (start + of_8_channels + (product.columns / 8 - 1) * of_8_columns + 128 > shared.size())
    fail("wgmma: reads beyond shared memory");
  exchange(given, "wgmma", [&](const auto& of) {
    const int g = machine.current->lane() / 4, t = machine.current->lane() % 4;
    float left[2][16];
    for (int k = 0; k < 16; ++k)
      for (int half = 0; half < 2; ++half) {
        const uint32_t pair = of(4 * g + k % 8 / 2).a[half + k / 8 * 2];
        left[half][k] = product.widen(static_cast<uint16_t>(pair >> 16 * (k % 2)));
      }
    for (int i = 0; i < product.columns / 4; ++i) {
      const int column = i / 2 * 8 + 2 * t + i % 2;
      const unsigned char* from = shared.data() + start + column / 8 * of_8_columns + column % 8 * 16;
      float* const sums = product.sums + i / 2 * 4 + i % 2;
      for (int k = 0; k < 16; ++k) {
        uint16_t bits;
        memcpy(&bits, from + k / 8 * of_8_channels + k % 8 * 2, sizeof bits);
        const float right = product.widen(bits);
        sums[0] += left[0][k] * right;
        sums[2] += left[1][k] * right;
      }
    }
  });
}

inline void multiply_committed() {
  Fiber& fiber = *machine.current;
  for (const Product& product : std::exchange(fiber.products, {})) multiply_now(product);
}

// Done as late as can be, or as early.
inline void warpgroup_commit() {
  Fiber& fiber = *machine.current;
  fiber.products.insert(fiber.products.end(), fiber.open_products.begin(), fiber.open_products.end());
  fiber.open_products.clear();
  if ((machine.seed + fiber.exchanges) % 2 == 0) multiply_committed();
}
inline void warpgroup_wait() {
  multiply_committed();
  machine.current->fenced = false;
}
inline void warpgroup_multiply(const Product& product) {
  Fiber& fiber = *machine.current;
  if (!fiber.fenced) fail("wgmma: without wgmma.fence before it");
  fiber.open_products.push_back(product);
}

}  // namespace cuda_on_host

#define threadIdx (cuda_on_host::machine.current->thread)
#define blockIdx (cuda_on_host::machine.current->block->index)
#define blockDim (cuda_on_host::machine.block)
#define gridDim (cuda_on_host::machine.grid)

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_host::sync_threads(file, line);
}
inline void __syncwarp(
    unsigned mask = 0xFFFFFFFFu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_host::sync_warp(mask, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_host::exchange(value, "__shfl_xor_sync", [&](const auto& of) {
    return of(cuda_on_host::machine.current->lane() ^ mask);
  });
}
template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_on_host::exchange(value, "__shfl_sync", [&](const auto& of) { return of(lane % 32); });
}
