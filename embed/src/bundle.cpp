#include "bundle.hpp"

#include <algorithm>

namespace moshi_mlx {

namespace {
constexpr int kFormat = 1;
constexpr const char* kManifest = "manifest.txt";

long whole(const std::string& text, const std::string& what) {
  size_t digits = text.size() && text[0] == '-' ? 1 : 0;
  bool good = text.size() > digits && text.size() < 12 && std::all_of(text.begin() + long(digits), text.end(), [](unsigned char c) { return isdigit(c); });
  if (!good) fail(MOSHI_BAD_BUNDLE, what, ": got '", text.substr(0, 32), "', expected a whole number");
  return std::stol(text);
}

std::string word(std::string& rest) {
  auto end = rest.find(' ');
  auto first = rest.substr(0, end);
  rest = end == std::string::npos ? "" : rest.substr(end + 1);
  return first;
}

void check_plain(const std::string& name) {
  if (name.empty() || name[0] == '.' || name.find_first_of("/\\:") != std::string::npos)
    fail(MOSHI_BAD_BUNDLE, "manifest: '", name, "' is no name of a file");
}
}  // namespace

Bundle::Bundle(const std::string& folder) : folder(folder) {
  read_manifest(read_file(folder + "/" + kManifest, MOSHI_BAD_BUNDLE));
  for (auto* key : {"sample_rate", "frame_size", "codebooks", "user_codebooks", "text_tokens", "audio_tokens", "context"}) number(key, 1);
  for (auto* key : {"delay", "kv_bits", "one_ring_on_gpu"}) number(key, 0);
  for (auto* key : {"temperature", "top_k", "top_p", "min_p", "text_temperature", "text_top_k", "text_top_p", "text_min_p"}) decimal(key);
  words("made_by"), words("licence");
  small = size_t(number("small", 1)), temporal = size_t(number("temporal", 1));
  encoder = size_t(number("encoder")), decoder = size_t(number("decoder")), parameters = size_t(number("parameters", 1));
  std::string sizes = words("capacities");
  while (!sizes.empty()) {
    capacities.push_back(int(whole(word(sizes), "capacities")));
    if (capacities.back() < 1 || (capacities.size() > 1 && capacities.end()[-2] >= capacities.back())) fail(MOSHI_BAD_BUNDLE, "capacities do not grow");
  }
  if (capacities.empty() || capacities.back() != number("context")) fail(MOSHI_BAD_BUNDLE, "capacities do not end with the context");
  for (std::string all = has("fingerprints") ? words("fingerprints") : ""; !all.empty();) fingerprints.push_back(word(all));
  if (has("fingerprints") && fingerprints.size() != weights.size()) fail(MOSHI_BAD_BUNDLE, "manifest: expected a fingerprint of each file of weights");
  auto table = files_.find("text.bin");
  if (table == files_.end()) fail(MOSHI_BAD_BUNDLE, folder, ": text.bin is missing");
  read_text(table->second);
}

void Bundle::read_manifest(const std::string& text) {
  std::string name = folder + "/" + kManifest, first = text.substr(0, text.find('\n')), key = "moshi_bundle ";
  if (first.compare(0, key.size(), key)) fail(MOSHI_BAD_BUNDLE, name, ": is not of a bundle (python -m moshi_mlx.export writes one)");
  if (first != key + std::to_string(kFormat))
    fail(MOSHI_BAD_BUNDLE, name, ": format ", first.substr(key.size(), 32), ", this library reads ", kFormat, "; export it again, or update the library");
  auto end = text.rfind("end ");
  if (end == std::string::npos || text.substr(end) != "end " + hexadecimal(crc32(std::string_view(text).substr(0, end))) + "\n")
    fail(MOSHI_BAD_BUNDLE, name, ": is damaged");
  id = crc32(text);
  std::istringstream lines(text.substr(0, end));
  for (std::string line; std::getline(lines, line);) read_line(line);
}

void Bundle::read_line(const std::string& line) {
  std::string rest = line, key = word(rest);
  if (key == "file") {
    auto crc = word(rest), size = word(rest);
    check_plain(rest);
    auto data = read_file(folder + "/" + rest, MOSHI_BAD_BUNDLE);
    if (std::to_string(data.size()) != size || hexadecimal(crc32(data)) != crc) fail(MOSHI_BAD_BUNDLE, folder, "/", rest, ": is damaged");
    files_[rest] = std::move(data);
  } else if (key == "weights") {
    check_plain(rest);
    weights.push_back(rest);
  } else if (key == "tensor") {
    long file = whole(word(rest), "tensor");
    if (file < 0 || size_t(file) >= weights.size()) fail(MOSHI_BAD_BUNDLE, "manifest: a tensor of no file");
    auto dtype = word(rest), shape = word(rest);
    bytes_of(dtype);
    if (shape.size() < 2 || shape.front() != '[' || shape.back() != ']') fail(MOSHI_BAD_BUNDLE, "manifest: a tensor without a shape");
    std::replace(shape.begin(), shape.end(), ',', ' ');
    shape = shape.substr(1, shape.size() - 2);
    std::vector<long> sizes;
    while (!shape.empty()) sizes.push_back(whole(word(shape), "tensor"));
    published.push_back({size_t(file), rest, {dtype, sizes}});
  } else if (!values_.emplace(key, rest).second) {
    fail(MOSHI_BAD_BUNDLE, "manifest: ", key, " stands there twice");
  }
}

void Bundle::read_text(const std::string& table) {
  for (size_t at = 0; at < table.size();) {
    size_t size = at + 2 <= table.size() ? (unsigned char)table[at] | (unsigned char)table[at + 1] << 8 : table.size();
    if (at + 2 + size > table.size()) fail(MOSHI_BAD_BUNDLE, folder, "/text.bin: is cut off");
    pieces.push_back(table.substr(at + 2, size));
    at += 2 + size;
  }
  if (pieces.size() != size_t(number("text_tokens"))) fail(MOSHI_BAD_BUNDLE, folder, "/text.bin: has another number of tokens");
}

Graph Bundle::graph(const std::string& name, const Symbols& symbols) const {
  auto found = files_.find(name + ".graph");
  if (found == files_.end()) fail(MOSHI_BAD_BUNDLE, folder, ": ", name, ".graph is missing");
  return Graph(name + ".graph", found->second, symbols);
}

const std::string& Bundle::words(const std::string& key) const {
  auto found = values_.find(key);
  if (found == values_.end()) fail(MOSHI_BAD_BUNDLE, "manifest: ", key, " is missing");
  return found->second;
}

int Bundle::number(const std::string& key, int least) const {
  long value = whole(words(key), key);
  if (value < least || value > 1'000'000'000) fail(MOSHI_BAD_BUNDLE, "manifest: ", key, " is ", value);
  return int(value);
}

double Bundle::decimal(const std::string& key) const {
  std::istringstream stream(words(key));
  stream.imbue(std::locale::classic());
  double value = 0;
  if (!(stream >> value) || !stream.eof() || !(value >= 0 && value < 1e9)) fail(MOSHI_BAD_BUNDLE, "manifest: ", key, " is ", words(key).substr(0, 32));
  return value;
}

}  // namespace moshi_mlx
