#include "graph.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace moshi_mlx {

namespace {
constexpr long kMostValues = 1'000'000;
constexpr int kFormat = 1;

std::vector<std::string_view> split(std::string_view text, char by) {
  std::vector<std::string_view> parts;
  while (true) {
    auto end = text.find(by);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}
}  // namespace

const Argument& Node::at(size_t k, Argument::Kind kind) const {
  if (k >= arguments.size() || arguments[k].kind != kind) fail(MOSHI_BAD_BUNDLE, op, ": argument ", k, " is of another kind");
  return arguments[k];
}

int Node::whole(size_t k) const {
  double value = number(k);
  if (value != std::floor(value) || std::abs(value) > std::numeric_limits<int>::max())
    fail(MOSHI_BAD_BUNDLE, op, ": argument ", k, " is ", value, ", expected a whole number");
  return int(value);
}

mx::Dtype Node::dtype(size_t k) const { return dtype_named(at(k, Argument::type).name); }

static const std::map<std::string, std::pair<mx::Dtype, int>>& dtypes() {
  static const std::map<std::string, std::pair<mx::Dtype, int>> all{
      {"bool", {mx::bool_, 1}},     {"uint8", {mx::uint8, 1}},     {"uint16", {mx::uint16, 2}}, {"uint32", {mx::uint32, 4}},
      {"uint64", {mx::uint64, 8}},  {"int8", {mx::int8, 1}},       {"int16", {mx::int16, 2}},   {"int32", {mx::int32, 4}},
      {"int64", {mx::int64, 8}},    {"float16", {mx::float16, 2}}, {"float32", {mx::float32, 4}},
      {"bfloat16", {mx::bfloat16, 2}}};
  return all;
}

mx::Dtype dtype_named(const std::string& name) {
  auto found = dtypes().find(name);
  if (found == dtypes().end()) fail(MOSHI_BAD_BUNDLE, "no such type: ", name);
  return found->second.first;
}

int bytes_of(const std::string& dtype) {
  auto found = dtypes().find(dtype);
  if (found == dtypes().end()) fail(MOSHI_BAD_BUNDLE, "no such type: ", dtype);
  return found->second.second;
}

// Reads the lines of a graph, and that every value is made once and before it is used.
class Reader {
 public:
  Reader(Graph& graph, const Symbols& symbols) : graph_(graph), symbols_(symbols) {}

  void read(std::string_view text) {
    auto lines = split(text, '\n');
    if (lines[0] != "moshi graph " + std::to_string(kFormat)) wrong("is no graph of format " + std::to_string(kFormat));
    if (lines.back() != "") wrong("ends in mid-line");
    for (size_t i = 1; i + 1 < lines.size(); i++) {
      line_ = i + 1;
      line(split(lines[i], ' '));
    }
    if (graph_.size_ == 0 || !ended_) wrong("is cut off");
    mark_done();
  }

 private:
  using Words = std::vector<std::string_view>;
  [[noreturn]] void wrong(const std::string& words) const {
    graph_.wrong((line_ ? "line " + std::to_string(line_) + ": " : "") + words);
  }

  void line(const Words& words) {
    auto kind = words[0];
    if (ended_) wrong("something stands behind the outputs");
    if (kind == "values" && words.size() == 2 && !graph_.size_) {
      auto size = whole(words[1]);
      if (size < 1 || size > kMostValues) wrong("too many values");
      graph_.size_ = size_t(size);
      made_.assign(graph_.size_, false);
    } else if (kind == "weights") {
      for (size_t i = 1; i < words.size(); i++) weight(words[i]);
    } else if (kind == "in") {
      for (size_t i = 1; i < words.size(); i++) graph_.inputs_.push_back(make(words[i]));
    } else if (kind == "const" && words.size() == 5) {
      constant(words);
    } else if (kind == "op" && words.size() >= 4) {
      operation(words);
    } else if (kind == "out") {
      for (size_t i = 1; i < words.size(); i++) graph_.outputs_.push_back(use(words[i]));
      ended_ = true;
    } else {
      wrong("cannot be read");
    }
  }

  void weight(std::string_view word) {
    auto ends = split(word, ':');
    if (ends.size() != 2) wrong("weights: expected PARAMETER:VALUE");
    long index = whole(ends[0]);
    if (index < 0 || index > kMostValues) wrong("weights: no such parameter");
    graph_.weights_.emplace_back(size_t(index), make(ends[1]));
  }

  void constant(const Words& words) {
    int id = make(words[1]);
    std::string type(words[2]);
    auto shape = list(words[3]);
    double count = 1;
    for (int n : shape) count *= n < 0 ? -1e18 : n;
    std::vector<double> values;
    if (!words[4].empty())
      for (auto word : split(words[4], ',')) values.push_back(number(word));
    if (count != double(values.size())) wrong("a constant has another number of values than its shape says");
    graph_.fixed_.emplace_back(id, array(type, values, mx::Shape(shape.begin(), shape.end())));
  }

  mx::array array(const std::string& type, const std::vector<double>& values, const mx::Shape& shape) {
    if (type.find("float") != std::string::npos) {
      std::vector<float> all(values.begin(), values.end());
      return mx::astype(mx::array(all.data(), shape), dtype_named(type));
    }
    bool wide = type == "uint32";
    for (double v : values)
      if (v != std::floor(v) || v < (wide ? 0. : -2147483648.) || v > (wide ? 4294967295. : 2147483647.))
        wrong("a constant is no whole number of 32 bits");
    if (wide) {
      std::vector<uint32_t> all(values.begin(), values.end());
      return mx::array(all.data(), shape);
    }
    std::vector<int> all(values.begin(), values.end());
    return mx::astype(mx::array(all.data(), shape), dtype_named(type));
  }

  void operation(const Words& words) {
    Node node;
    node.op = std::string(words[1]);
    if (words[2] != "-")
      for (auto word : split(words[2], ',')) node.inputs.push_back(use(word));
    for (auto word : split(words[3], ',')) node.outputs.push_back(make(word));
    for (size_t i = 4; i < words.size(); i++) node.arguments.push_back(argument(words[i]));
    if (!takes(node)) wrong("operation " + node.op + " is unknown or has another number of arrays or arguments");
    graph_.nodes_.push_back(std::move(node));
  }

  Argument argument(std::string_view word) {
    if (word.empty()) wrong("an argument is empty");
    if (word[0] == '[') return {Argument::list, 0, list(word), {}};
    std::string name(word);
    if (dtypes().count(name)) return {Argument::type, 0, {}, name};
    return {Argument::number, number(word), {}, {}};
  }

  std::vector<int> list(std::string_view word) {
    if (word.size() < 2 || word.front() != '[' || word.back() != ']') wrong("expected a list");
    std::vector<int> values;
    if (word.size() > 2)
      for (auto each : split(word.substr(1, word.size() - 2), ',')) values.push_back(int(whole(each)));
    return values;
  }

  // A whole number, a sum of sizes such as V-K or T+8*A, or a number with a point.
  double number(std::string_view word) {
    if (word.empty() || word.size() > 64) wrong("expected a number");
    if (word == "inf") return INFINITY;
    if (word == "-inf") return -INFINITY;
    if (word == "nan") return NAN;
    bool sum = std::all_of(word.begin(), word.end(), [](unsigned char c) { return isdigit(c) || isupper(c) || strchr("+-*", c); });
    if (sum) return double(whole(word));
    std::istringstream stream{std::string(word)};
    stream.imbue(std::locale::classic());  // a point, whatever the app's language
    double value = 0;
    if (!(stream >> value) || !stream.eof()) wrong("expected a number, got " + std::string(word.substr(0, 32)));
    return value;
  }

  long whole(std::string_view word) {
    long total = 0, factor = 1, sign = 1;
    size_t i = 0;
    auto digits = [&] {
      long value = 0;
      size_t from = i;
      while (i < word.size() && isdigit((unsigned char)word[i])) {
        if (i - from > 11) wrong("a number is too large");
        value = 10 * value + (word[i++] - '0');
      }
      return value;
    };
    do {
      sign = 1, factor = 1;
      if (i < word.size() && (word[i] == '-' || word[i] == '+')) sign = word[i++] == '-' ? -1 : 1;
      bool number = i < word.size() && isdigit((unsigned char)word[i]);
      if (number) factor = digits();
      bool symbol = i < word.size() && (number ? word[i] == '*' : isupper((unsigned char)word[i]));
      if (symbol) {
        if (number) i++;
        auto found = i < word.size() ? symbols_.find(word[i++]) : symbols_.end();
        if (found == symbols_.end()) wrong("no such size in " + std::string(word.substr(0, 32)));
        factor *= found->second;
      } else if (!number) {
        wrong("expected a whole number, got " + std::string(word.substr(0, 32)));
      }
      total += sign * factor;
    } while (i < word.size() && (word[i] == '+' || word[i] == '-'));
    if (i < word.size() || std::abs(total) > 4294967295L) wrong("expected a whole number, got " + std::string(word.substr(0, 32)));
    return total;
  }

  int id(std::string_view word) {
    long value = whole(word);
    if (value < 0 || value >= long(graph_.size_)) wrong("no such value");
    return int(value);
  }
  int make(std::string_view word) {
    int value = id(word);
    if (made_[size_t(value)]) wrong("a value is made twice");
    made_[size_t(value)] = true;
    return value;
  }
  int use(std::string_view word) {
    int value = id(word);
    if (!made_[size_t(value)]) wrong("a value is used before it is made");
    return value;
  }

  // After its last use a value is dropped: MLX then writes into its memory instead of taking more.
  void mark_done() {
    std::vector<bool> needed(graph_.size_, false);
    for (int v : graph_.outputs_) needed[size_t(v)] = true;
    graph_.done_.resize(graph_.nodes_.size());
    for (size_t k = graph_.nodes_.size(); k-- > 0;) {
      for (auto* side : {&graph_.nodes_[k].inputs, &graph_.nodes_[k].outputs})
        for (int v : *side)
          if (!needed[size_t(v)]) {
            needed[size_t(v)] = true;
            graph_.done_[k].push_back(v);
          }
    }
  }

  Graph& graph_;
  const Symbols& symbols_;
  size_t line_ = 0;
  bool ended_ = false;
  std::vector<bool> made_;
};

Graph::Graph(const std::string& name, std::string_view text, const Symbols& symbols) : name_(name) {
  Reader(*this, symbols).read(text);
}

void Graph::bind(const Arrays& parameters) {
  for (auto [index, value] : weights_) {
    if (index >= parameters.size()) wrong("asks for parameter " + std::to_string(index) + " of " + std::to_string(parameters.size()));
    fixed_.emplace_back(value, parameters[index]);
  }
  weights_.clear();
}

Arrays Graph::operator()(const Arrays& inputs, const Choose* choose) const {
  if (inputs.size() != inputs_.size() || !weights_.empty())
    wrong("takes " + std::to_string(inputs_.size()) + " arrays, got " + std::to_string(inputs.size()));
  std::vector<std::optional<mx::array>> values(size_);
  for (size_t k = 0; k < inputs_.size(); k++) values[size_t(inputs_[k])] = inputs[k];
  for (auto& [id, array] : fixed_) values[size_t(id)] = array;
  for (size_t k = 0; k < nodes_.size(); k++) {
    auto& node = nodes_[k];
    Arrays given, made;
    for (int v : node.inputs) given.push_back(*values[size_t(v)]);
    if (node.op != "Choose") made = run_operation(node, given);
    else if (choose) made = {(*choose)(node.whole(0), given[0])};
    if (made.size() != node.outputs.size()) wrong(node.op + " makes " + std::to_string(made.size()) + " arrays");
    given.clear();
    for (size_t i = 0; i < made.size(); i++) values[size_t(node.outputs[i])] = std::move(made[i]);
    for (int v : done_[k]) values[size_t(v)].reset();
  }
  Arrays out;
  for (int v : outputs_) out.push_back(*values[size_t(v)]);
  return out;
}

}  // namespace moshi_mlx
