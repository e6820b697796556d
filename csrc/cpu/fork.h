// A mutex that a process can be forked beside: its copy in the child is unlocked, whichever thread had it.
#pragma once
#include <mutex>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace convgru::cpu {

// Whoever has one must not wait for another. Never destroyed.
class ForkSafeMutex {
 public:
  ForkSafeMutex() {
    const std::lock_guard<std::mutex> lock(all().mutex);
    all().members.push_back(this);
#if defined(__unix__) || defined(__APPLE__)
    if (all().members.size() == 1) pthread_atfork(lock_all, unlock_all, unlock_all);
#endif
  }
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct All {
    std::mutex mutex;
    std::vector<ForkSafeMutex*> members;
  };
  static All& all() {
    static All& value = *new All;
    return value;
  }
  static void lock_all() {
    all().mutex.lock();
    for (ForkSafeMutex* each : all().members) each->lock();
  }
  static void unlock_all() {
    for (ForkSafeMutex* each : all().members) each->unlock();
    all().mutex.unlock();
  }

  std::mutex mutex_;
};

}  // namespace convgru::cpu
