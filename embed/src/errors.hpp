// What goes wrong inside, until api.cpp turns it into a status and words.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

#include "moshi.h"

namespace moshi_mlx {

struct Error : std::runtime_error {
  Error(moshi_status status, const std::string& words) : std::runtime_error(words), status(status) {}
  moshi_status status;
};

template <class... Words>
[[noreturn]] void fail(moshi_status status, const Words&... words) {
  std::ostringstream all;
  all.imbue(std::locale::classic());
  (all << ... << words);
  throw Error(status, all.str());
}

}  // namespace moshi_mlx
