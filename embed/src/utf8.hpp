// UTF-8 that comes in pieces: what is whole so far, each ill-formed part replaced by U+FFFD (Unicode 16, section 3.9,
// "substitution of maximal subparts"), as Python's incremental decoder does with errors="replace".
#pragma once
#include <string>
#include <string_view>

namespace moshi_mlx {

class Utf8 {
 public:
  std::string operator()(std::string_view bytes) {
    std::string out;
    for (char c : bytes) next(static_cast<unsigned char>(c), out);
    return out;
  }
  const std::string& held() const { return held_; }  // the beginning of a character; given to a new one, it goes on

 private:
  void next(unsigned char c, std::string& out) {
    if (missing_ && (c < low_ || c > high_)) {
      for (size_t i = 0; i < (surrogate() ? 2 : 1); i++) out += "\xEF\xBF\xBD";
      missing_ = 0;
      held_.clear();
    }
    if (!missing_) return first(c, out);
    held_ += char(c);
    low_ = 0x80, high_ = 0xBF;
    if (surrogate()) low_ = 1, high_ = 0;  // no byte goes on with it; Python waits for one before it says so
    if (--missing_) return;
    out += held_;
    held_.clear();
  }
  void first(unsigned char c, std::string& out) {
    low_ = 0x80, high_ = 0xBF;
    if (c < 0x80) {
      out += char(c);
      return;
    }
    if (c >= 0xC2 && c <= 0xDF) {
      missing_ = 1;
    } else if (c >= 0xE0 && c <= 0xEF) {
      missing_ = 2;
      if (c == 0xE0) low_ = 0xA0;
    } else if (c >= 0xF0 && c <= 0xF4) {
      missing_ = 3;
      if (c == 0xF0) low_ = 0x90;
      if (c == 0xF4) high_ = 0x8F;  // no more than U+10FFFF
    } else {
      out += "\xEF\xBF\xBD";
      return;
    }
    held_ = char(c);
  }

  // The beginning of one half of a UTF-16 pair, which is two ill-formed parts.
  bool surrogate() const { return held_.size() == 2 && held_[0] == '\xED' && (unsigned char)held_[1] >= 0xA0; }

  std::string held_;
  int missing_ = 0;
  unsigned char low_ = 0x80, high_ = 0xBF;  // of the next byte
};

}  // namespace moshi_mlx
