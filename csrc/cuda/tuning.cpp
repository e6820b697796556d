#include "tuning.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <mutex>

#include "timing.h"

namespace convgru::cuda {
namespace {

const std::map<std::string, Way> kNames{
    {"one-kernel", Way::kOneKernel},
    {"library", Way::kLibrary},
    {"kernels", Way::kKernels},
    {"warpgroups", Way::kWarpgroups}};

std::string name_of(Way way) {
  for (const auto& [name, named] : kNames)
    if (named == way) return name;
  return "";
}

std::filesystem::path file() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::filesystem::path(value == nullptr ? "" : value);
  };
  std::filesystem::path folder = variable("CONVGRU_FUSED_CACHE");
  if (folder.empty()) folder = variable("HOME") / ".cache" / "convgru_fused";
  return folder / "cuda_ways.txt";
}

using Ways = std::map<std::string, Way>;

// Lines "way: key"; a later one counts, others that are not understood do not.
Ways read(const std::filesystem::path& from) {
  Ways ways;
  std::ifstream stream(from);
  for (std::string line; std::getline(stream, line);) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const auto way = kNames.find(line.substr(0, colon));
    if (way != kNames.end()) ways.insert_or_assign(line.substr(colon + 2), way->second);
  }
  return ways;
}

// Appended at once, so that processes do not lose each other's.
void remember(const std::filesystem::path& in, const std::string& key, Way way) {
  std::error_code ignored;
  std::filesystem::create_directories(in.parent_path(), ignored);
  std::ofstream stream(in, std::ios::app);
  stream << name_of(way) + ": " + key + "\n" << std::flush;
  if (!stream) std::fprintf(stderr, "convgru_fused: cannot write %s\n", in.c_str());
}

std::string key_of(const Call& call, const std::string& what) {
  const Problem& p = call.p;
  const Optional& weight_ih = call.arguments.weight_ih;
  std::ostringstream key;
  const uint64_t torch = aoti_torch_abi_version();
  key << device_name() << ", torch " << (torch >> 56) << "." << (torch >> 48 & 0xff) << ", " << what
      << (p.T == 1 ? ", one step" : ", steps") << ", N=" << p.N << " C=";
  if (weight_ih.has_value())
    key << weight_ih->size(1) << " " << weight_ih->size(2) << "x" << weight_ih->size(3);
  else
    key << 0;
  key << " " << problem_text(call);
  if (call.may_be_warpgroups) key << ", with warpgroups";
  return key.str();
}

// Of a few measurements, the ways in turn, each one's shortest.
Way measure(const Call& call, const std::function<void(const Call&)>& run) {
  constexpr int kRounds = 4;  // of which the first is to warm up
  const bool is_double = call.weight_hh().scalar_type() == torch::headeronly::ScalarType::Double;
  std::vector<Way> ways{Way::kKernels};
  if (!is_double) ways.push_back(Way::kLibrary);
  if (call.may_be_warpgroups) ways.push_back(Way::kWarpgroups);
  if (has_work_for_one_kernel(call)) ways.push_back(Way::kOneKernel);
  std::vector<double> shortest(ways.size(), std::numeric_limits<double>::infinity());
  for (int round = 0; round < kRounds; ++round)
    for (size_t i = 0; i < ways.size(); ++i) {
      Call trial = call;
      trial.way = ways[i];
      const double time = milliseconds(call.stream, [&] { run(trial); });
      if (round > 0) shortest[i] = std::min(shortest[i], time);
    }
  return ways[std::min_element(shortest.begin(), shortest.end()) - shortest.begin()];
}

}  // namespace

std::optional<Way> measured_way(
    const Call& call, const std::string& what, const std::function<void(const Call&)>& run) {
  if (!is_set("CONVGRU_FUSED_AUTOTUNE") || call.p.all_rows() == 0) return std::nullopt;
  static std::mutex mutex;
  static std::map<std::filesystem::path, Ways> known;
  const std::scoped_lock lock(mutex);
  const std::filesystem::path where = file();
  const auto [ways, is_new] = known.try_emplace(where);
  if (is_new) ways->second = read(where);
  const std::string key = key_of(call, what);
  const auto found = ways->second.find(key);
  if (found != ways->second.end()) return found->second;
  if (call.captured) return std::nullopt;
  const Way way = measure(call, run);
  remember(where, key, way);
  ways->second[key] = way;
  return way;
}

}  // namespace convgru::cuda
