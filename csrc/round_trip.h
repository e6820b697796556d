// How far apart two cores are.
#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

namespace convgru {

// Nanoseconds in which a cache line goes from this thread to another one and back, the best of some attempts:
// tens between cores that share a cache, hundreds between parts of a processor or processors. Takes about 2
// ms.
inline double thread_round_trip() {
  using Clock = std::chrono::steady_clock;
  constexpr int kAttempts = 20, kTrips = 200;
  constexpr auto kMost = std::chrono::milliseconds(50);  // two threads on one core wait for the scheduler
  alignas(64) std::atomic<int> ball{0};
  // Whether the value came, and not the end.
  const auto wait_for = [&](int value) {
    for (int spins = 0;; ++spins) {
      const int seen = ball.load(std::memory_order_acquire);
      if (seen == value || seen < 0) return seen == value;
      if (spins > 10000) std::this_thread::yield();
    }
  };
  std::thread other([&] {
    for (int value = 1; wait_for(value); value += 2) ball.store(value + 1, std::memory_order_release);
  });
  double best = 0;
  int value = 0;
  const auto start = Clock::now();
  for (int attempt = 0; attempt < kAttempts && Clock::now() - start < kMost; ++attempt) {
    const auto begin = Clock::now();
    for (int trip = 0; trip < kTrips; ++trip, value += 2) {
      ball.store(value + 1, std::memory_order_release);
      wait_for(value + 2);
    }
    const double mean = std::chrono::duration<double, std::nano>(Clock::now() - begin).count() / kTrips;
    best = attempt == 0 ? mean : std::min(best, mean);
  }
  ball.store(-1, std::memory_order_release);
  other.join();
  return best;
}

}  // namespace convgru
