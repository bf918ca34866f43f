// Damaged bundles and checkpoints: an error, never a crash. moshi-fuzz CASES COUNT [SEED]
//
// Half of the mutations are made to files as they lie there; the checksums find those. The other half is signed anew, so
// that the readers behind the checksums meet them, and the graphs that can still be read are run.
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <moshi.hpp>
#include <random>
#include <sstream>

namespace fs = std::filesystem;
static std::mt19937 rng;

static size_t below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(rng); }

static std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream all;
  all << file.rdbuf();
  return all.str();
}

static void write(const fs::path& path, const std::string& data) { std::ofstream(path, std::ios::binary) << data; }

static uint32_t crc32(const std::string& data) {
  uint32_t crc = ~0u;
  for (unsigned char c : data) {
    crc ^= c;
    for (int k = 0; k < 8; k++) crc = crc & 1 ? 0xEDB88320u ^ crc >> 1 : crc >> 1;
  }
  return ~crc;
}

static std::string hex(uint32_t v) {
  char text[9];
  snprintf(text, sizeof text, "%08x", v);
  return text;
}

static void mutate(std::string& data, size_t within) {
  static const char* const words[] = {"0", "-1", "99999999999", "4294967295", "[", "]", ",", " ", "\n", "op", "nan", "float32", "V-K", "-", ":"};
  for (size_t k = 0; k <= below(3); k++) {
    size_t n = std::min(within, data.size());
    if (!n) return;
    switch (below(6)) {
      case 0: data[below(n)] = char(below(256)); break;
      case 1: data.erase(below(n), 1 + below(20)); break;
      case 2: data.insert(below(n), words[below(std::size(words))]); break;
      case 3: data.resize(below(n) + 1); return;
      case 4: data.insert(below(n), data.substr(below(n), below(60))); break;
      case 5: {  // a digit becomes another, which keeps the text readable
        size_t at = data.find_first_of("0123456789", below(n));
        if (at < n) data[at] = char('0' + below(10));
      }
    }
  }
}

// As export's `fingerprint`: a checksum of blocks spread over a file.
static std::string fingerprint(const std::string& data) {
  std::string blocks;
  for (size_t k = 0; k < 64; k++) blocks += data.substr(k * (data.size() > 4096 ? data.size() - 4096 : 0) / 63, 4096);
  return " " + std::to_string(data.size()) + ":" + hex(crc32(blocks));
}

// The manifest says again what the files are.
static void sign(const fs::path& folder, const fs::path& checkpoint) {
  std::istringstream lines(read(folder / "manifest.txt"));
  std::string all;
  auto fingerprints = "fingerprints" + fingerprint(read(checkpoint / "model.safetensors")) + fingerprint(read(checkpoint / "mimi.safetensors"));
  for (std::string line; std::getline(lines, line);) {
    if (!line.compare(0, 5, "file ")) {
      auto name = line.substr(line.rfind(' ') + 1);
      auto data = read(folder / name);
      line = "file " + hex(crc32(data)) + " " + std::to_string(data.size()) + " " + name;
    }
    if (!line.compare(0, 13, "fingerprints ") && below(8)) line = fingerprints;
    if (line.compare(0, 4, "end ")) all += line + "\n";
  }
  write(folder / "manifest.txt", all + "end " + hex(crc32(all)) + "\n");
}

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  fs::path cases = argv[1], work = cases / "fuzz", bundle = work / "bundle", checkpoint = work / "checkpoint";
  size_t count = size_t(atol(argv[2]));
  rng.seed(argc > 3 ? unsigned(atol(argv[3])) : 1);
  fs::remove_all(work);
  fs::create_directories(work);
  fs::copy(cases / "tiny" / "bundle", bundle);
  fs::copy(cases / "tiny" / "checkpoint", checkpoint);
  std::vector<fs::path> files;
  for (auto& entry : fs::directory_iterator(bundle)) files.push_back(entry.path());
  for (auto& entry : fs::directory_iterator(checkpoint))
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  auto options = moshi_load_defaults();
  options.own_thread = 0, options.warm_up = 0;
  std::map<int, size_t> statuses;
  auto manifest = read(bundle / "manifest.txt");
  for (size_t i = 0; i < count; i++) {
    auto& file = files[below(files.size())];
    auto before = read(file), after = before;
    bool weights = file.extension() == ".safetensors";
    mutate(after, weights ? 8 + 2000 : after.size());
    write(file, after);
    if (below(2)) sign(bundle, checkpoint);
    moshi_model* model = nullptr;
    auto status = moshi_load(bundle.c_str(), checkpoint.c_str(), &options, &model);
    statuses[status]++;
    if (status && !*moshi_error()) return std::cerr << "an error without words\n", 1;
    moshi_free(model);
    write(file, before);
    write(bundle / "manifest.txt", manifest);
  }
  std::cout << "fuzz: " << count << " mutations, none crashed;";
  for (auto [status, times] : statuses) std::cout << " status " << status << ": " << times << ";";
  std::cout << "\n";
  fs::remove_all(work);
  return 0;
}
