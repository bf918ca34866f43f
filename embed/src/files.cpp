#include "files.hpp"

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include <sys/stat.h>

#include "graph.hpp"
#include "json.hpp"

namespace moshi_mlx {

namespace {
struct Close {
  void operator()(FILE* file) const { fclose(file); }
};
using File = std::unique_ptr<FILE, Close>;
constexpr uint64_t kMostHeader = 100'000'000;

[[noreturn]] void fail_system(moshi_status status, const std::string& path) {
  const char* expected = status == MOSHI_BAD_BUNDLE       ? "; expected a bundle (python -m moshi_mlx.export CHECKPOINT FOLDER writes one)"
                         : status == MOSHI_BAD_CHECKPOINT ? "; expected the weights that the bundle was made of"
                                                          : "";
  fail(status, path, ": ", errno ? strerror(errno) : "cannot be read", expected);
}

File open(const std::string& path, const char* how, moshi_status status) {
  errno = 0;
  File file(fopen(path.c_str(), how));
  if (!file) fail_system(status, path);
  return file;
}

uint64_t size_of(FILE* file, const std::string& path) {
  if (fseeko(file, 0, SEEK_END)) fail_system(MOSHI_BAD_CHECKPOINT, path);
  return uint64_t(ftello(file));
}
}  // namespace

std::string read_file(const std::string& path, moshi_status status) {
  auto file = open(path, "rb", status);
  std::string data;
  char block[1 << 16];
  while (size_t n = fread(block, 1, sizeof block, file.get())) data.append(block, n);
  if (ferror(file.get())) fail_system(status, path);
  return data;
}

void write_file(const std::string& path, std::string_view data, moshi_status status) {
  struct stat there;
  if (!stat(path.c_str(), &there) && !S_ISREG(there.st_mode) && !S_ISDIR(there.st_mode))  // a folder refuses by itself
    fail(status, path, ": is a device or a pipe, expected a file");
  std::string partial = path + ".partial";
  errno = 0;
  File file(fopen(partial.c_str(), "wb"));
  if (!file) fail_system(status, path);
  bool whole = fwrite(data.data(), 1, data.size(), file.get()) == data.size() && !fflush(file.get());
  if (fclose(file.release())) whole = false;
  if (whole && !rename(partial.c_str(), path.c_str())) return;
  int why = errno;
  remove(partial.c_str());
  errno = why;
  fail_system(status, path);
}

uint32_t crc32(std::string_view data) {
  static const auto table = [] {
    std::array<uint32_t, 256> all{};
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
      all[i] = c;
    }
    return all;
  }();
  uint32_t crc = 0xFFFFFFFFu;
  for (unsigned char c : data) crc = table[(crc ^ c) & 0xFF] ^ (crc >> 8);
  return crc ^ 0xFFFFFFFFu;
}

std::string hexadecimal(uint32_t value) {
  char text[9];
  snprintf(text, sizeof text, "%08x", value);
  return text;
}

std::string fingerprint(const std::string& path) {
  constexpr uint64_t kSamples = 64, kSample = 4096;
  auto file = open(path, "rb", MOSHI_BAD_CHECKPOINT);
  uint64_t size = size_of(file.get(), path);
  std::string all;
  char block[kSample];
  for (uint64_t k = 0; k < kSamples; k++) {
    if (fseeko(file.get(), off_t(k * (size > kSample ? size - kSample : 0) / (kSamples - 1)), SEEK_SET)) fail_system(MOSHI_BAD_CHECKPOINT, path);
    all.append(block, fread(block, 1, kSample, file.get()));
  }
  return std::to_string(size) + ":" + hexadecimal(crc32(all));
}

namespace {
// {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {...}}
class Header {
 public:
  Header(const std::string& path, std::string_view text, uint64_t data) : path_(path), json_(text), data_(data) {}

  std::map<std::string, Tensor> read() {
    std::map<std::string, Tensor> all;
    json_.object([&](const std::string& name) {
      if (name == "__metadata__") return json_.skip();
      if (!all.emplace(name, tensor(name)).second) fail(MOSHI_BAD_CHECKPOINT, path_, ": two tensors ", name);
    });
    json_.end();
    return all;
  }

 private:
  Tensor tensor(const std::string& name) {
    std::string code;
    std::vector<long> shape, span;
    json_.object([&](const std::string& key) {
      if (key == "dtype") code = json_.string();
      else if (key == "shape") shape = json_.whole_numbers();
      else if (key == "data_offsets") span = json_.whole_numbers();
      else json_.skip();
    });
    static const std::map<std::string, const char*> types{
        {"BOOL", "bool"}, {"U8", "uint8"},   {"U16", "uint16"},   {"U32", "uint32"},  {"U64", "uint64"},   {"I8", "int8"},
        {"I16", "int16"}, {"I32", "int32"},  {"I64", "int64"},    {"F16", "float16"}, {"BF16", "bfloat16"}, {"F32", "float32"}};
    auto type = types.find(code);
    if (type == types.end()) fail(MOSHI_BAD_CHECKPOINT, path_, ": tensor ", name, " is of type ", code);
    double bytes = bytes_of(type->second);
    for (long n : shape) bytes *= double(n);
    bool fits = span.size() == 2 && span[0] <= span[1] && uint64_t(span[1]) <= data_;
    if (!fits) fail(MOSHI_BAD_CHECKPOINT, path_, ": tensor ", name, " lies beyond the end of the file: is it cut off?");
    if (bytes != double(span[1] - span[0])) fail(MOSHI_BAD_CHECKPOINT, path_, ": tensor ", name, " has another length than its shape says");
    return {type->second, shape};
  }

  const std::string& path_;
  Json json_;
  uint64_t data_;
};
}  // namespace

std::map<std::string, Tensor> tensors_in(const std::string& path) {
  auto file = open(path, "rb", MOSHI_BAD_CHECKPOINT);
  unsigned char length[8];
  uint64_t size = 0;
  if (fread(length, 1, 8, file.get()) != 8) fail(MOSHI_BAD_CHECKPOINT, path, ": is no safetensors file");
  for (int i = 7; i >= 0; i--) size = size << 8 | length[i];
  if (size > kMostHeader) fail(MOSHI_BAD_CHECKPOINT, path, ": is no safetensors file");
  std::string text(size, '\0');
  if (fread(text.data(), 1, size, file.get()) != size) fail(MOSHI_BAD_CHECKPOINT, path, ": is cut off");
  uint64_t whole = size_of(file.get(), path);
  try {
    return Header(path, text, whole - 8 - size).read();
  } catch (const Json::Wrong& wrong) {
    fail(MOSHI_BAD_CHECKPOINT, path, ": the header is damaged (", wrong.what(), ")");
  }
}

}  // namespace moshi_mlx
