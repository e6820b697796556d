#include "launch.cuh"
#include "timing.h"

#if defined(CONVGRU_CUDA_ON_HOST)

#include <chrono>

namespace convgru::cuda {

std::string device_name() {
  return "host";
}

bool is_capturing(Stream) {
  return false;
}

double milliseconds(Stream, const std::function<void()>& run) {
  using clock = std::chrono::steady_clock;
  const auto begin = clock::now();
  run();
  return std::chrono::duration<double, std::milli>(clock::now() - begin).count();
}

}  // namespace convgru::cuda

#else

namespace convgru::cuda {
namespace {

class Event {
 public:
  Event() { check(cudaEventCreate(&event_)); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream stream) { check(cudaEventRecord(event_, static_cast<cudaStream_t>(stream))); }

  double milliseconds_after(const Event& begin) {
    float milliseconds;
    check(cudaEventSynchronize(event_));
    check(cudaEventElapsedTime(&milliseconds, begin.event_, event_));
    return milliseconds;
  }

 private:
  cudaEvent_t event_;
};

}  // namespace

// Asked for at every call that may be measured, and slow to find out.
std::string device_name() {
  static std::mutex mutex;
  static std::map<int, std::string> names;
  const int device = current_device();
  const std::scoped_lock lock(mutex);
  const auto known = names.find(device);
  if (known != names.end()) return known->second;
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device));
  return names[device] = properties.name;
}

bool is_capturing(Stream stream) {
  cudaStreamCaptureStatus status;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
  return status != cudaStreamCaptureStatusNone;
}

double milliseconds(Stream stream, const std::function<void()>& run) {
  Event begin, end;
  begin.record(stream);
  run();
  end.record(stream);
  return end.milliseconds_after(begin);
}

}  // namespace convgru::cuda

#endif
