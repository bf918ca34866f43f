// How the tokens of a conversation are chosen: the graphs of its settings, which decide what is computed at all.
#pragma once
#include <optional>

#include "bundle.hpp"
#include "graph.hpp"
#include "mlx.hpp"

namespace moshi_mlx {

// Of one kind of tokens, text or codes.
class Stream {
 public:
  Stream(const Bundle& bundle, double temperature, int top_k, double top_p, double min_p, int vocabulary);
  // numbers: temperature, top_p, log min_p, the inputs of the graph after logits and noise
  mx::array choose(const mx::array& logits, const mx::array& noise, const Arrays& numbers) const;
  Arrays numbers() const;

  const bool greedy;

 private:
  double temperature_, top_p_, min_p_;
  Graph graph_;
};

class Sampler {
 public:
  Sampler(const Bundle& bundle, const moshi_settings& settings);
  Stream text, audio;
  std::optional<Graph> noise;  // none where all is greedy
};

// Throws Error(MOSHI_BAD_ARGUMENT).
void check_settings(const moshi_settings& settings);
moshi_settings default_settings(const Bundle& bundle);

}  // namespace moshi_mlx
