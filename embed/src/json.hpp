// As much of JSON as the header of a safetensors file needs.
#pragma once
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace moshi_mlx {

class Json {
 public:
  struct Wrong : std::runtime_error {
    using std::runtime_error::runtime_error;
  };
  explicit Json(std::string_view text) : text_(text) {}

  // Calls member(key) for every member, which must read its value.
  template <class F>
  void object(F&& member) {
    expect('{');
    if (take('}')) return;
    do {
      auto key = string();
      expect(':');
      member(key);
    } while (take(','));
    expect('}');
  }

  std::string string() {
    expect('"');
    std::string out;
    while (true) {
      char c = next();
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      c = next();
      static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
      if (c == 'u') append(hexadecimal(), out);
      else if (const char* at = c ? strchr(from, c) : nullptr) out += to[at - from];
      else wrong("an escape");
    }
  }

  std::vector<long> whole_numbers() {
    std::vector<long> all;
    expect('[');
    if (take(']')) return all;
    do {
      blank();
      size_t from = at_;
      long value = 0;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9' && at_ - from < 18) value = 10 * value + (text_[at_++] - '0');
      if (at_ == from) wrong("a whole number");
      all.push_back(value);
    } while (take(','));
    expect(']');
    return all;
  }

  void skip(int depth = 0) {
    if (depth > 32) wrong("less depth");
    blank();
    char c = at_ < text_.size() ? text_[at_] : '\0';
    if (c == '"') {
      string();
    } else if (c == '{') {
      object([&](const std::string&) { skip(depth + 1); });
    } else if (take('[')) {
      if (take(']')) return;
      do skip(depth + 1);
      while (take(','));
      expect(']');
    } else {
      size_t from = at_;
      while (at_ < text_.size() && (isalnum((unsigned char)text_[at_]) || strchr("+-.", text_[at_]))) at_++;
      if (at_ == from) wrong("a value");
    }
  }

  void end() {
    blank();
    if (at_ != text_.size()) wrong("its end");
  }

 private:
  [[noreturn]] void wrong(const std::string& expected) { throw Wrong("expected " + expected + " at byte " + std::to_string(at_)); }
  void blank() {
    while (at_ < text_.size() && text_[at_] && strchr(" \t\r\n", text_[at_])) at_++;
  }
  char next() {
    if (at_ >= text_.size()) wrong("more");
    return text_[at_++];
  }
  bool take(char c) {
    blank();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    at_++;
    return true;
  }
  void expect(char c) {
    if (!take(c)) wrong(std::string(1, c));
  }
  unsigned hexadecimal() {
    unsigned value = 0;
    for (int i = 0; i < 4; i++) {
      char c = next();
      if (!isxdigit((unsigned char)c)) wrong("a hexadecimal digit");
      value = value * 16 + unsigned(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return value;
  }
  static void append(unsigned code, std::string& out) {
    if (code < 0x80) {
      out += char(code);
    } else if (code < 0x800) {
      out += {char(0xC0 | code >> 6), char(0x80 | (code & 63))};
    } else {
      out += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace moshi_mlx
