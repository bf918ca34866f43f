// A graph as moshi_mlx/export/tracing.py writes it, run with MLX's public operations on whatever device it is called on.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "mlx.hpp"

namespace moshi_mlx {

using Symbols = std::map<char, int>;  // sizes that a graph leaves open

// An argument of an operation: a number, a list of whole numbers, or a type.
struct Argument {
  enum Kind { number, list, type } kind;
  double value = 0;
  std::vector<int> values;
  std::string name;
};

struct Node {
  std::string op;
  std::vector<int> inputs, outputs;
  std::vector<Argument> arguments;

  const Argument& at(size_t k, Argument::Kind kind) const;
  double number(size_t k) const { return at(k, Argument::number).value; }
  int whole(size_t k) const;
  const std::vector<int>& list(size_t k) const { return at(k, Argument::list).values; }
  mx::Shape shape(size_t k) const { return mx::Shape(list(k).begin(), list(k).end()); }
  mx::Dtype dtype(size_t k) const;
};

mx::Dtype dtype_named(const std::string& name);
int bytes_of(const std::string& dtype);
Arrays run_operation(const Node& node, const Arrays& inputs);  // operations.cpp
bool takes(const Node& node);                                  // is there such an operation, with so many arrays?

// The choice of a token that a graph asks for: (codebook, logits) -> token.
using Choose = std::function<mx::array(int, const mx::array&)>;

class Graph {
 public:
  // `name` stands before every error. Throws Error(MOSHI_BAD_BUNDLE).
  Graph(const std::string& name, std::string_view text, const Symbols& symbols = {});
  void bind(const Arrays& parameters);  // the weights, once they are there
  Arrays operator()(const Arrays& inputs, const Choose* choose = nullptr) const;
  size_t inputs() const { return inputs_.size(); }
  size_t outputs() const { return outputs_.size(); }

 private:
  friend class Reader;
  [[noreturn]] void wrong(const std::string& words) const { fail(MOSHI_BAD_BUNDLE, name_, ": ", words); }

  std::string name_;
  size_t size_ = 0;
  std::vector<std::pair<size_t, int>> weights_;  // parameter, value
  std::vector<int> inputs_, outputs_;
  std::vector<std::pair<int, mx::array>> fixed_;  // constants, and weights once bound
  std::vector<Node> nodes_;
  std::vector<std::vector<int>> done_;  // values that nothing after a node needs
};

}  // namespace moshi_mlx
