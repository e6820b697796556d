#include "schedule.h"

#include <algorithm>
#include <thread>

#include "../tensors.h"

namespace convgru::cpu {
namespace {

// Looks at another thread's item before this one lets others have its core.
constexpr int kSpins = 4096;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

int64_t share_of_row(const Grid& grid, int64_t row, int64_t threads) {
  const int64_t rows = grid.samples * grid.height;
  return row % rows * threads / rows;
}

std::vector<Item> pieces(const Grid& grid, int64_t images, int64_t together, int64_t least) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t step = grid.samples * grid.height / together, steps = images / grid.samples;
  std::vector<Item> items;
  const auto add = [&](int64_t begin, int64_t end) {
    const Rows rows{begin * together, end * together};
    items.push_back({rows, share_of_row(grid, (rows.begin + rows.end) / 2, threads)});
  };
  if (step < 2 * least) {  // some steps in a piece
    const int64_t some = std::max<int64_t>(1, least / step);
    for (int64_t first = 0; first < steps; first += some)
      add(first * step, std::min(first + some, steps) * step);
    return items;
  }
  int64_t count = step / least;
  if (count > threads) count = count / threads * threads;  // so that shares are not torn apart
  for (int64_t t = 0; t < steps; ++t)
    for (int64_t i = 0; i < count; ++i) add(t * step + step * i / count, t * step + step * (i + 1) / count);
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

// Runs an item, and before it what it waits for, unless others do, for which it waits then: who has taken an
// item waits for earlier stages only, so somebody is always at work. False if an item has failed.
bool Schedule::finish(Place place) {
  std::atomic<uint8_t>& mine = state(place);
  uint8_t open = kOpen;
  if (mine.load(std::memory_order_relaxed) == kOpen &&
      mine.compare_exchange_strong(open, kTaken, std::memory_order_relaxed)) {
    if (!for_awaited(place, [&](Place other) { return finish(other); })) return false;
    stages_[place.stage].stage.run(place.item);
    mine.store(kDone, std::memory_order_release);
    return true;
  }
  for (int spins = 0; mine.load(std::memory_order_acquire) != kDone; ++spins) {
    if (failed_.load(std::memory_order_relaxed)) return false;
    pause();
    if (spins >= kSpins) std::this_thread::yield();
  }
  return true;
}

// Runs the last item of a thread's list that can be run. False if there is none.
bool Schedule::help(const std::vector<Place>& list) {
  for (auto place = list.rbegin(); place != list.rend(); ++place)
    if (state(*place).load(std::memory_order_relaxed) == kOpen && ready(*place)) return finish(*place);
  return false;
}

void Schedule::run() {
  const int64_t threads = torch::stable::get_num_threads();
  if (single_ || threads == 1) {
    for (const Planned& planned : stages_)
      for (size_t i = 0; i < planned.stage.items.size(); ++i) planned.stage.run(static_cast<int64_t>(i));
    return;
  }
  const std::vector<std::vector<Place>> lists = this->lists(threads);
  states_ = std::make_unique<std::atomic<uint8_t>[]>(items_);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t thread = begin; thread < end; ++thread) {
        for (const Place place : lists[thread])
          if (!finish(place)) return;
        for (int64_t i = 1; i < threads; ++i)
          while (help(lists[(thread + i) % threads])) continue;
      }
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
