// A conversation in a file: a few lines of text, then the arrays of its state, then a checksum.
#include <algorithm>

#include "conversation.hpp"

namespace moshi_mlx {

namespace {
constexpr const char* kFirst = "moshi conversation 1\n";

std::string hex(const std::string& bytes) {
  std::string out = "x";
  for (unsigned char c : bytes) out += "0123456789abcdef"[c >> 4], out += "0123456789abcdef"[c & 15];
  return out;
}

std::string unhex(const std::string& text) {
  std::string out;
  auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
  for (size_t i = 1; i + 1 < text.size(); i += 2) out += char(digit(text[i]) << 4 | digit(text[i + 1]));
  return out;
}

// The bytes of an array, whatever its type.
std::string bytes(const mx::array& array) {
  if (!array.size()) return {};
  auto flat = mx::contiguous(mx::view(mx::reshape(array, {int(array.size())}), mx::uint8), false);
  flat.eval();
  auto* data = reinterpret_cast<const char*>(flat.data<uint8_t>());
  return std::string(data, array.nbytes());
}

mx::array with_bytes(const mx::array& like, const char* data) {
  if (!like.size()) return like;
  mx::array flat(reinterpret_cast<const uint8_t*>(data), {int(like.nbytes())});
  return mx::reshape(mx::view(flat, like.dtype()), mx::Shape(like.shape()));
}
}  // namespace

std::string Conversation::saved() {
  check_idle();
  if (broken_) fail(MOSHI_FAILED, "the conversation is lost after an earlier failure: reset it");
  std::ostringstream head;
  head.imbue(std::locale::classic());
  head.precision(17);
  auto& s = settings_;
  head << kFirst << hexadecimal(model_->bundle.id) << ' ' << s.seed << ' ' << s.temperature << ' ' << s.top_k << ' ' << s.top_p << ' '
       << s.min_p << ' ' << s.text_temperature << ' ' << s.text_top_k << ' ' << s.text_top_p << ' ' << s.text_min_p << ' '
       << positions_ << ' ' << capacity_ << ' ' << nonfinite_ << ' ' << hex(utf8_.held()) << ' ' << hex(pending_) << '\n';
  std::string all = head.str();
  for (auto* arrays : {&key_, &small_, &temporal_, &encoder_, &decoder_})
    for (auto& array : *arrays) all += bytes(array);
  return all + hexadecimal(crc32(all));
}

Conversation::Conversation(std::shared_ptr<Model> model, const std::string& path, const std::string& saved)
    : model_(std::move(model)) {
  auto& bundle = model_->bundle;
  size_t first = std::string(kFirst).size();
  if (saved.compare(0, first, kFirst)) fail(MOSHI_BAD_FILE, path, ": is no saved conversation of this version");
  if (saved.size() < first + 8 || hexadecimal(crc32(std::string_view(saved).substr(0, saved.size() - 8))) != saved.substr(saved.size() - 8))
    fail(MOSHI_BAD_FILE, path, ": is damaged");
  size_t line = saved.find('\n', first);
  if (line == std::string::npos) fail(MOSHI_BAD_FILE, path, ": is damaged");
  std::istringstream head(saved.substr(first, line - first));
  head.imbue(std::locale::classic());
  auto& s = settings_;
  s.size = sizeof s;
  std::string id, held, pending;
  uint64_t nonfinite = 0;
  head >> id >> s.seed >> s.temperature >> s.top_k >> s.top_p >> s.min_p >> s.text_temperature >> s.text_top_k >> s.text_top_p >>
      s.text_min_p >> positions_ >> capacity_ >> nonfinite >> held >> pending;
  if (!head) fail(MOSHI_BAD_FILE, path, ": is damaged");
  if (id != hexadecimal(bundle.id)) fail(MOSHI_BAD_FILE, path, ": belongs to another bundle");
  check_settings(s);
  auto& sizes = bundle.capacities;
  bool known = std::find(sizes.begin(), sizes.end(), capacity_) != sizes.end();
  if (!known || positions_ < 1 || (positions_ > capacity_ && capacity_ != sizes.back())) fail(MOSHI_BAD_FILE, path, ": is damaged");
  nonfinite_ = nonfinite;
  utf8_(unhex(held));
  pending_ = unhex(pending);
  voice_ = model_->voice(s);

  auto state = model_->fresh();
  small_ = part(state, 0, bundle.small), temporal_ = part(state, bundle.small, bundle.temporal);
  encoder_ = part(state, bundle.small + bundle.temporal, bundle.encoder);
  decoder_ = part(state, bundle.small + bundle.temporal + bundle.encoder, bundle.decoder);
  for (size_t i = 0; sizes[i] != capacity_; i++) temporal_ = model_->grow(sizes[i], temporal_);
  uint32_t none[2] = {};
  key_ = {mx::array(none, {1, 2})};
  size_t at = line + 1, end = saved.size() - 8;
  for (auto* arrays : {&key_, &small_, &temporal_, &encoder_, &decoder_})
    for (auto& array : *arrays) {
      if (array.nbytes() > end - at) fail(MOSHI_BAD_FILE, path, ": is damaged");
      size_t size = array.nbytes();
      array = with_bytes(array, saved.data() + at);
      array.eval();
      at += size;
    }
  if (at != end) fail(MOSHI_BAD_FILE, path, ": is damaged");
}

}  // namespace moshi_mlx
