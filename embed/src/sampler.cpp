#include "sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moshi_mlx {

namespace {
constexpr double kCold = 1e-30;  // below it, logits divided by the temperature may leave float32's range

Graph graph_of(const Bundle& bundle, double temperature, int top_k, double top_p, double min_p, int vocabulary) {
  int kept = std::min(top_k ? top_k : vocabulary, vocabulary);
  std::string kind = kept < vocabulary ? "k" : "";
  if (top_p < 1) kind += "p";
  if (min_p > 0) kind += "m";
  if (temperature < kCold) kind += "c";
  std::string name = "sample." + (temperature == 0 ? "greedy" : kind.empty() ? "all" : kind);
  return bundle.graph(name, {{'V', vocabulary}, {'K', kept}});
}

mx::array scalar(float value) { return mx::array(&value, mx::Shape{}); }

void check_range(const char* name, double value, double least, double most, const char* expected) {
  if (!(value >= least && value <= most)) fail(MOSHI_BAD_ARGUMENT, name, ": got ", value, ", expected ", expected);
}
}  // namespace

Stream::Stream(const Bundle& bundle, double temperature, int top_k, double top_p, double min_p, int vocabulary)
    : greedy(temperature == 0), temperature_(temperature), top_p_(top_p), min_p_(min_p),
      graph_(graph_of(bundle, temperature, top_k, top_p, min_p, vocabulary)) {}

mx::array Stream::choose(const mx::array& logits, const mx::array& noise, const Arrays& numbers) const {
  return graph_({logits, noise, numbers[0], numbers[1], numbers[2]})[0];
}

Arrays Stream::numbers() const {
  return {scalar(float(temperature_)), scalar(float(top_p_)), scalar(min_p_ > 0 ? float(std::log(min_p_)) : 0.0f)};
}

Sampler::Sampler(const Bundle& bundle, const moshi_settings& s)
    : text(bundle, s.text_temperature, s.text_top_k, s.text_top_p, s.text_min_p, bundle.number("text_tokens")),
      audio(bundle, s.temperature, s.top_k, s.top_p, s.min_p, bundle.number("audio_tokens")) {
  if (text.greedy && audio.greedy) return;
  noise = bundle.graph("noise");
  if (noise->outputs() != 2 + size_t(bundle.number("codebooks"))) fail(MOSHI_BAD_BUNDLE, "noise.graph: has another number of results");
}

void check_settings(const moshi_settings& s) {
  const double least = std::numeric_limits<float>::min(), most = std::numeric_limits<float>::max();
  auto heat = [&](const char* name, double value) {
    if (value != 0) check_range(name, value, least, most, "0 or more, within float32's range");
  };
  auto share = [&](const char* name, double value, double from) {
    check_range(name, value, from, 1, from > 0 ? "a number above 0, up to 1" : "a number from 0 to 1");
  };
  heat("temperature", s.temperature), heat("text_temperature", s.text_temperature);
  check_range("top_k", s.top_k, 0, INFINITY, "a whole number from 0"), check_range("text_top_k", s.text_top_k, 0, INFINITY, "a whole number from 0");
  share("top_p", s.top_p, least), share("text_top_p", s.text_top_p, least);
  share("min_p", s.min_p, 0), share("text_min_p", s.text_min_p, 0);
}

moshi_settings default_settings(const Bundle& b) {
  return {sizeof(moshi_settings), 0,
          b.decimal("temperature"), int(b.decimal("top_k")), b.decimal("top_p"), b.decimal("min_p"),
          b.decimal("text_temperature"), int(b.decimal("text_top_k")), b.decimal("text_top_p"), b.decimal("text_min_p")};
}

}  // namespace moshi_mlx
