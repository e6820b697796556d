// Every instruction that C++ has no word for, one function each: PTX on a GPU (sm_80 and later), its twin of
// tests/cuda_on_host on a CPU. Nothing else in the kernels knows the difference.
#pragma once
#include <cmath>
#include <cstdint>

#define CONVGRU_DEVICE __device__ __forceinline__

namespace convgru::cuda {

// The two 16-bit types that the matrix units multiply, by their bits.
enum class Half { kBFloat16, kFloat16 };

// Whether there are the matrix units of Hopper, which four warps use together (wgmma).
#if defined(CONVGRU_CUDA_ON_HOST) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWarpgroupProducts = true;
#else
constexpr bool kHasWarpgroupProducts = false;
#endif

#if defined(CONVGRU_CUDA_ON_HOST)

inline unsigned char* dynamic_shared() {
  return cuda_on_host::dynamic_shared();
}

template <int kBytes>
inline void copy_async(void* shared, const void* global, int read_bytes = kBytes) {
  cuda_on_host::copy_async(shared, global, kBytes, read_bytes);
}
inline void copy_async_commit() {
  cuda_on_host::copy_async_commit();
}
template <int kMostPending>
inline void copy_async_wait() {
  cuda_on_host::copy_async_wait(kMostPending);
}

template <bool kTransposed>
inline void load_matrices(uint32_t (&fragments)[4], const void* shared_row) {
  const cuda_on_host::Four four = cuda_on_host::load_matrices(shared_row, kTransposed);
  for (int i = 0; i < 4; ++i) fragments[i] = four.registers[i];
}

[[noreturn]] inline void trap() {
  cuda_on_host::fail("trap");
}

inline uint32_t shared_address(const void* pointer) {
  return cuda_on_host::shared_address(pointer);
}

inline void barrier_init(uint64_t* barrier, unsigned count) {
  cuda_on_host::barrier_init(barrier, count);
}
inline void barrier_expect(uint64_t* barrier, unsigned bytes) {
  cuda_on_host::barrier_expect(barrier, bytes);
}
inline void barrier_wait(uint64_t* barrier, unsigned parity) {
  cuda_on_host::barrier_wait(barrier, parity);
}
inline void copy_bulk(void* shared, const void* global, unsigned bytes, uint64_t* barrier) {
  cuda_on_host::copy_bulk(shared, global, bytes, barrier);
}
inline void async_proxy_fence() {
  cuda_on_host::async_proxy_fence();
}
inline void warpgroup_fence() {
  cuda_on_host::warpgroup_fence();
}
inline void warpgroup_commit() {
  cuda_on_host::warpgroup_commit();
}
template <int kSums>
inline void warpgroup_wait(float (&)[kSums]) {
  cuda_on_host::warpgroup_wait();
}

template <class Meanwhile>
inline void sync_grid(unsigned* arrived, unsigned round, const Meanwhile& meanwhile) {
  __syncthreads();
  if (threadIdx.x == 0) {
    if (*arrived / gridDim.x != round - 1) cuda_on_host::fail("sync_grid: the counter did not start at zero");
    ++*arrived;
  } else {
    meanwhile();
  }
  cuda_on_host::sync_grid();
}

template <class Number>
inline Number in_register(Number value) {
  return value;
}

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float fast_exp2(float x) {
  return exp2f(x);
}
inline float fast_reciprocal(float x) {
  return 1 / x;
}
inline double bits_to_double(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint64_t double_to_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float half_to_float(uint16_t bits) {
  _Float16 value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint16_t float_to_half(float value) {
  const _Float16 half = value;
  uint16_t bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}
inline uint16_t float_to_bfloat16(float value) {
  if (value != value) return 0x7FFF;
  const uint32_t bits = float_to_bits(value);
  return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}

template <int kPerRegister, class Widen>
inline void multiply_add(
    float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Widen& widen) {
  const cuda_on_host::Sums d =
      cuda_on_host::multiply<kPerRegister>({{sums[0], sums[1], sums[2], sums[3]}}, a, b, widen);
  for (int i = 0; i < 4; ++i) sums[i] = d.values[i];
}

template <Half kType>
inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_add<2>(sums, a, b, [](uint32_t pair, int which) {
    const uint16_t bits = pair >> (16 * which);
    return kType == Half::kBFloat16 ? bits_to_float(uint32_t{bits} << 16) : half_to_float(bits);
  });
}

template <Half kType, int kColumns>
inline void warpgroup_multiply_add(float (&sums)[kColumns / 2], const uint32_t (&a)[4], uint64_t b) {
  cuda_on_host::warpgroup_multiply({sums, a, b, kColumns, [](uint16_t bits) {
                                      return kType == Half::kBFloat16 ? bits_to_float(uint32_t{bits} << 16)
                                                                      : half_to_float(bits);
                                    }});
}

// The instruction reads the upper 19 bits.
inline void multiply_add_tf32(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  multiply_add<1>(sums, a, b, [](uint32_t bits, int) { return bits_to_float(bits & 0xFFFFE000u); });
}

#else

// The block's dynamic shared memory, aligned for every vector load.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Ends the kernel with an error.
__device__ __forceinline__ void trap() {
  __trap();
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts to copy kBytes (4, 8 or 16; both addresses multiples of them), of which the first read_bytes are
// read and the rest becomes zeros.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global, int read_bytes = kBytes) {
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(read_bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                 "n"(kBytes), "r"(read_bytes)
                 : "memory");
}
// Ends a group of copies.
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most so many of this thread's groups are under way. Other threads see what was copied after
// the next barrier.
template <int kMostPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kMostPending) : "memory");
}

// The blocks of a cooperative launch wait for each other; what any has written before, all can read after: a
// block's barrier orders its threads' accesses before the release and after the acquire of one of them.
// `arrived` is a counter that starts at zero, `round` the number of the barrier, from 1. Every thread but one
// does meanwhile(), when those of its own block have arrived.
template <class Meanwhile>
__device__ __forceinline__ void sync_grid(unsigned* arrived, unsigned round, const Meanwhile& meanwhile) {
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
    } while (seen < round * gridDim.x);
  } else {
    meanwhile();
  }
  __syncthreads();
}

// The same number, that the compiler keeps: it cannot find it anew where it is used, as it would in a loop
// that uses many registers, by more instructions than the use.
__device__ __forceinline__ int in_register(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
__device__ __forceinline__ int64_t in_register(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

__device__ __forceinline__ float bits_to_float(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ __forceinline__ uint32_t float_to_bits(float value) {
  return __float_as_uint(value);
}
// 2^x and 1/x within two units of the last place.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ double bits_to_double(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}
__device__ __forceinline__ uint64_t double_to_bits(double value) {
  return static_cast<uint64_t>(__double_as_longlong(value));
}
__device__ __forceinline__ float half_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
// These round to nearest even.
__device__ __forceinline__ uint16_t float_to_half(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
__device__ __forceinline__ uint16_t float_to_bfloat16(float value) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// Four 8x8 matrices of 16-bit elements as fragments of the matrix units: lane 8i+r gives the address of row r
// of matrix i, a multiple of 16 bytes.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&fragments)[4], const void* shared_row) {
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(fragments[0]), "=r"(fragments[1]), "=r"(fragments[2]), "=r"(fragments[3])
                 : "r"(shared_address(shared_row))
                 : "memory");
}

// sums (16x8) += a (16x16) times b (16x8), a warp together. Lane 4g+t holds of the sums rows g and g+8,
// columns 2t and 2t+1; of a those rows, columns 2t, 2t+1 and 8 more; of b column g, rows 2t, 2t+1 and 8 more.
template <Half kType>
__device__ __forceinline__ void multiply_add(
    float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kType == Half::kBFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Barriers in shared memory that bulk copies arrive at (mbarrier). Round after round, a barrier is passed
// when `count` threads have arrived and the bytes they expected have been copied; the first round has the
// parity 0. The thread that initialises them fences before it copies, and others wait after a barrier of the
// block.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}
// Arrives, and expects so many bytes more.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, unsigned parity) {
  uint32_t passed;
  do {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
        : "=r"(passed)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (passed == 0);
}
// Starts to copy so many bytes; they and both addresses are multiples of 16. By one thread, in the proxy in
// which products of warpgroups read.
__device__ __forceinline__ void copy_bulk(
    void* shared, const void* global, unsigned bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(shared)),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
__device__ __forceinline__ void async_proxy_fence() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Products by a warpgroup, four warps whose numbers begin with a multiple of four: begun, and done at some
// time before warpgroup_wait. Until then nobody writes its factors or reads its sums.
//
// Between what touches the registers of sums and factors and the products that read them.
__device__ __forceinline__ void warpgroup_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void warpgroup_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until all products are done that were committed.
template <int kSums>
__device__ __forceinline__ void warpgroup_wait(float (&sums)[kSums]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i]));
}

#define CONVGRU_SUMS_16(i)                                                                                \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]),              \
      "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7]), "+f"(sums[i + 8]), "+f"(sums[i + 9]),      \
      "+f"(sums[i + 10]), "+f"(sums[i + 11]), "+f"(sums[i + 12]), "+f"(sums[i + 13]), "+f"(sums[i + 14]), \
      "+f"(sums[i + 15])
#define CONVGRU_NAMES_32                                                                                   \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
  "%28,%29,%30,%31"
#define CONVGRU_NAMES_48 CONVGRU_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define CONVGRU_NAMES_64 CONVGRU_NAMES_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define CONVGRU_FACTORS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)

// sums (64x64, 64x96 or 64x128) += a (64x16) times b (16 x as many columns), a warpgroup together; of a each
// warp has 16 rows, and of a and the sums each thread what it has in multiply_add. b: by its descriptor.
template <Half kType, int kColumns>
__device__ __forceinline__ void warpgroup_multiply_add(
    float (&sums)[kColumns / 2], const uint32_t (&a)[4], uint64_t b) {
#define CONVGRU_MULTIPLY(type, columns, names, factors, ...)                                    \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" names \
               "}, {" factors ", 1, 1, 1, 0;"                                                   \
               : __VA_ARGS__                                                                    \
               : CONVGRU_FACTORS)
#define CONVGRU_MULTIPLY_COLUMNS(type)                                                                 \
  if constexpr (kColumns == 64)                                                                        \
    CONVGRU_MULTIPLY(                                                                                  \
        type, 64, CONVGRU_NAMES_32, "%32,%33,%34,%35}, %36", CONVGRU_SUMS_16(0), CONVGRU_SUMS_16(16)); \
  else if constexpr (kColumns == 96)                                                                   \
    CONVGRU_MULTIPLY(                                                                                  \
        type, 96, CONVGRU_NAMES_48, "%48,%49,%50,%51}, %52", CONVGRU_SUMS_16(0), CONVGRU_SUMS_16(16),  \
        CONVGRU_SUMS_16(32));                                                                          \
  else                                                                                                 \
    CONVGRU_MULTIPLY(                                                                                  \
        type, 128, CONVGRU_NAMES_64, "%64,%65,%66,%67}, %68", CONVGRU_SUMS_16(0), CONVGRU_SUMS_16(16), \
        CONVGRU_SUMS_16(32), CONVGRU_SUMS_16(48))
  static_assert(kColumns == 64 || kColumns == 96 || kColumns == 128);
  if constexpr (kType == Half::kBFloat16) {
    CONVGRU_MULTIPLY_COLUMNS("bf16");
  } else {
    CONVGRU_MULTIPLY_COLUMNS("f16");
  }
#undef CONVGRU_MULTIPLY_COLUMNS
#undef CONVGRU_MULTIPLY
}
#undef CONVGRU_FACTORS
#undef CONVGRU_NAMES_64
#undef CONVGRU_NAMES_48
#undef CONVGRU_NAMES_32
#undef CONVGRU_SUMS_16

// sums (16x8) += a (16x8) times b (8x8) of floats rounded to TF32. Lane 4g+t holds of a rows g and g+8 of
// column t, then of column t+4; of b rows t and t+4 of column g.
__device__ __forceinline__ void multiply_add_tf32(
    float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#endif

// Of a factor in shared memory, 16 channels of some columns, as the products of a warpgroup find it: 8
// channels of a column together, 8 columns one after the other; from 8 columns to the next, and from 8
// channels to the next, so many bytes. All multiples of 16.
CONVGRU_DEVICE uint64_t descriptor(const void* shared, int bytes_of_8_columns, int bytes_of_8_channels) {
  return uint64_t{(shared_address(shared) & 0x3FFFF) >> 4} | uint64_t(bytes_of_8_channels >> 4) << 16 |
         uint64_t(bytes_of_8_columns >> 4) << 32;
}
// Of a factor so many bytes further on.
CONVGRU_DEVICE uint64_t moved_descriptor(uint64_t descriptor, int bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace convgru::cuda
