#include "schedule.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <thread>

#include "../tensors.h"

namespace convgru::cpu {
namespace {

// Looks at another thread's item that could be begun before this one takes it, because its own thread is
// probably about to; and at one that is being worked on before this thread lets others have its core.
constexpr int kPatience = 128;
constexpr int kSpins = 4096;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void divide(const Grid& grid, const std::vector<int64_t>& rows, std::vector<Item>& items) {
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<int64_t> order(items.size());
  std::iota(order.begin(), order.end(), int64_t(0));
  const int64_t step = grid.samples * grid.height, count = static_cast<int64_t>(items.size());
  std::stable_sort(
      order.begin(), order.end(), [&](int64_t a, int64_t b) { return rows[a] % step < rows[b] % step; });
  for (int64_t i = 0; i < count; ++i) items[order[i]].thread = i * threads / count;
}

std::vector<Item> pieces(const Grid& grid, int64_t images, int64_t together, int64_t least) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t step = grid.samples * grid.height / together, steps = images / grid.samples;
  std::vector<Item> items;
  std::vector<int64_t> middles;
  const auto add = [&](int64_t begin, int64_t end) {
    items.push_back({{begin * together, end * together}, 0});
    middles.push_back((begin + end) / 2 * together);
  };
  if (step < 2 * least) {  // some steps in a piece
    const int64_t some = std::max<int64_t>(1, least / step);
    for (int64_t first = 0; first < steps; first += some)
      add(first * step, std::min(first + some, steps) * step);
  } else {
    int64_t count = step / least;
    if (count > threads) count = count / threads * threads;  // so that shares are not torn apart
    for (int64_t t = 0; t < steps; ++t)
      for (int64_t i = 0; i < count; ++i) add(t * step + step * i / count, t * step + step * (i + 1) / count);
  }
  divide(grid, middles, items);
  return items;
}

int Schedule::add(Stage stage, std::vector<After> after) {
  const int64_t count = static_cast<int64_t>(stage.items.size());
  single_ &= count <= 1;
  stages_.push_back({std::move(stage), std::move(after), items_});
  items_ += count;
  return static_cast<int>(stages_.size()) - 1;
}

// The items of each thread in their order: stage by stage, step by step, and first those that are next to
// another thread's share, for which that thread will wait.
std::vector<std::vector<Schedule::Place>> Schedule::lists(int64_t threads) const {
  std::vector<std::vector<Place>> lists(threads);
  const int64_t rows = grid_.samples * grid_.height;
  struct Entry {
    int64_t step, distance;
    Place place;
  };
  std::vector<std::vector<Entry>> entries(threads);
  for (size_t s = 0; s < stages_.size(); ++s) {
    const std::vector<Item>& items = stages_[s].stage.items;
    for (size_t i = 0; i < items.size(); ++i) {
      const auto [begin, end] = items[i].rows;
      const int64_t thread = items[i].thread, middle = (begin + end) / 2, row = middle % rows;
      int64_t distance = rows;
      if (thread > 0) distance = std::min(distance, std::abs(row - rows * thread / threads));
      if (thread < threads - 1) distance = std::min(distance, std::abs(rows * (thread + 1) / threads - row));
      entries[thread].push_back({middle / rows, distance, {static_cast<int>(s), static_cast<int32_t>(i)}});
    }
    for (int64_t thread = 0; thread < threads; ++thread) {
      std::stable_sort(entries[thread].begin(), entries[thread].end(), [](const Entry& a, const Entry& b) {
        return a.step != b.step ? a.step < b.step : a.distance < b.distance;
      });
      for (const Entry& entry : entries[thread]) lists[thread].push_back(entry.place);
      entries[thread].clear();
    }
  }
  return lists;
}

// Calls f for the items that this one waits for, until f returns false. Whether it never did.
template <class F>
bool Schedule::for_awaited(Place place, const F& f) const {
  const Planned& planned = stages_[place.stage];
  for (const After& after : planned.after) {
    if (after.stage == kNoStage) continue;
    auto [begin, end] = planned.stage.items[place.item].rows;
    begin += after.offset;
    end += after.offset;
    const int64_t height = grid_.height;
    begin = std::max(begin - after.halo, begin / height * height);
    end = std::min(end + after.halo, (end + height - 1) / height * height);
    const std::vector<Item>& items = stages_[after.stage].stage.items;
    for (size_t i = 0; i < items.size(); ++i)
      if (items[i].rows.begin < end && begin < items[i].rows.end &&
          !f(Place{after.stage, static_cast<int32_t>(i)}))
        return false;
  }
  return true;
}

bool Schedule::ready(Place place) const {
  return for_awaited(
      place, [&](Place other) { return state(other).load(std::memory_order_acquire) == kDone; });
}

// Whether this thread is the one that runs an item.
bool Schedule::take(Place place, int64_t thread) {
  std::atomic<uint8_t>& state = this->state(place);
  uint8_t open = state.load(std::memory_order_relaxed);
  const bool own = stages_[place.stage].stage.items[place.item].thread == thread;
  for (int looks = 0; !own && open == kOpen && looks < kPatience; ++looks) {
    pause();
    open = state.load(std::memory_order_relaxed);
  }
  if (open != kOpen || !state.compare_exchange_strong(open, kTaken, std::memory_order_relaxed)) return false;
  open_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

// Runs an item that has been taken, and before it what it waits for. False if an item has failed.
bool Schedule::run_taken(Place place, int64_t thread) {
  if (!for_awaited(place, [&](Place other) { return finish(other, thread); })) return false;
  const Stage& stage = stages_[place.stage].stage;
  stage.run(place.item, stage.items[place.item].rows);
  state(place).store(kDone, std::memory_order_release);
  return true;
}

// Sees to it that an item is done: runs it or waits for who does. A thread that has taken an item waits for
// earlier stages only, so somebody is always at work. False if an item has failed.
bool Schedule::finish(Place place, int64_t thread) {
  if (take(place, thread)) return run_taken(place, thread);
  const std::atomic<uint8_t>& state = this->state(place);
  for (int looks = 0; state.load(std::memory_order_acquire) != kDone; ++looks) {
    if (failed_.load(std::memory_order_relaxed)) return false;
    pause();
    if (looks >= kSpins) std::this_thread::yield();
  }
  return true;
}

// Runs the last item of another thread's list that can be run. False if there is none.
bool Schedule::help(const std::vector<Place>& list, int64_t thread) {
  for (auto place = list.rbegin(); place != list.rend(); ++place)
    if (state(*place).load(std::memory_order_relaxed) == kOpen && ready(*place))
      return take(*place, thread) && run_taken(*place, thread);
  return false;
}

// What a thread does: its own items, then those that others leave. False if an item has failed.
bool Schedule::work(const std::vector<std::vector<Place>>& lists, int64_t thread) {
  for (const Place place : lists[thread])
    if (!finish(place, thread)) return false;
  const int64_t threads = static_cast<int64_t>(lists.size());
  for (int pauses = 0; open_.load(std::memory_order_relaxed) > 0;) {
    if (failed_.load(std::memory_order_relaxed)) return false;
    bool helped = false;
    for (int64_t i = 1; i < threads && !helped; ++i) helped = help(lists[(thread + i) % threads], thread);
    if (helped) {
      pauses = 0;
      continue;
    }
    for (int i = 0; i < kPatience; ++i) pause();
    pauses += kPatience;
    if (pauses >= kSpins) std::this_thread::yield();
  }
  return true;
}

void Schedule::run() {
  const int64_t threads = torch::stable::get_num_threads();
  if (single_ || threads == 1) {
    for (const Planned& planned : stages_) {
      const std::vector<Item>& items = planned.stage.items;
      for (size_t i = 0; i < items.size(); ++i) planned.stage.run(static_cast<int64_t>(i), items[i].rows);
    }
    return;
  }
  const std::vector<std::vector<Place>> lists = this->lists(threads);
  states_ = std::make_unique<std::atomic<uint8_t>[]>(items_);
  open_ = items_;
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t thread = begin; thread < end; ++thread)
        if (!work(lists, thread)) return;
    } catch (...) {
      failed_ = true;
      throw;
    }
  });
}

void run_stage(Stage stage) {
  Schedule schedule({1, 1, 1});
  schedule.add(std::move(stage), {});
  schedule.run();
}

}  // namespace convgru::cpu
