// Which thread does which work, and when. Images are cut into as many shares as there are threads, the first
// rows for the first thread, and every stage of the work that goes over them does so by the same shares: what
// a thread reads it has mostly written itself, which lies in its own caches. Threads may sit on parts of a
// machine between which a cache line takes as long as from memory. Nobody waits for a stage to be over: an
// item of work waits for those items alone whose rows it reads or overwrites.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "convolution.h"

namespace convgru::cpu {

// Images (steps,samples) whose rows are divided among the threads.
struct Grid {
  int64_t samples, height, width;
  int64_t pixels() const { return height * width; }
};

// Part of a stage: the rows that it writes, of the images (step, sample, row) counted through, and the thread
// in whose share they are.
struct Item {
  Rows rows;
  int64_t thread;
};

struct Stage {
  std::vector<Item> items;
  std::function<void(int64_t, const Rows&)> run;  // of an item: its number and rows
};

// For a stage, one before it: its items wait for those of that whose rows are theirs plus offset, or in the
// same image as one of these and at most `halo` rows from it.
struct After {
  int stage;  // kNoStage: for nothing
  int64_t halo, offset = 0;
};
constexpr int kNoStage = -1;

// Gives every thread as many items, in the order of the row of a step that stands for each.
void divide(const Grid& grid, const std::vector<int64_t>& rows, std::vector<Item>& items);

// All rows of so many images, in pieces of at least `least` times `together` rows, as far as there are so
// many, cut between these.
std::vector<Item> pieces(const Grid& grid, int64_t images, int64_t together, int64_t least);

class Schedule {
 public:
  explicit Schedule(const Grid& grid) : grid_(grid) {}

  // Returns the number of the stage.
  int add(Stage stage, std::vector<After> after);

  // Runs all stages. Results must not depend on the order of items that do not wait for each other.
  void run();

 private:
  struct Planned {
    Stage stage;
    std::vector<After> after;
    int64_t first;  // of its items, among all
  };
  struct Place {
    int stage;
    int32_t item;
  };
  enum State : uint8_t { kOpen, kTaken, kDone };

  std::atomic<uint8_t>& state(Place place) const { return states_[stages_[place.stage].first + place.item]; }
  std::vector<std::vector<Place>> lists(int64_t threads) const;
  template <class F>
  bool for_awaited(Place place, const F& f) const;
  bool ready(Place place) const;
  bool take(Place place, int64_t thread);
  bool run_taken(Place place, int64_t thread);
  bool finish(Place place, int64_t thread);
  bool help(const std::vector<Place>& list, int64_t thread);
  bool work(const std::vector<std::vector<Place>>& lists, int64_t thread);

  Grid grid_;
  int64_t items_ = 0;
  bool single_ = true;  // no stage has a second item
  std::vector<Planned> stages_;
  std::unique_ptr<std::atomic<uint8_t>[]> states_;
  std::atomic<int64_t> open_{0};  // items that nobody has taken
  std::atomic<bool> failed_{false};
};

// A stage by itself.
void run_stage(Stage stage);

}  // namespace convgru::cpu
