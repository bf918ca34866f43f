// What is in a bundle's folder, checked against its manifest: nothing here computes.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "files.hpp"
#include "graph.hpp"
#include "moshi.h"

namespace moshi_mlx {

struct Published {
  size_t file;
  std::string name;
  Tensor tensor;
};

class Bundle {
 public:
  explicit Bundle(const std::string& folder);  // Throws Error(MOSHI_BAD_BUNDLE)

  Graph graph(const std::string& name, const Symbols& symbols = {}) const;
  int number(const std::string& key, int least = 0) const;
  bool has(const std::string& key) const { return values_.count(key) > 0; }
  double decimal(const std::string& key) const;
  const std::string& words(const std::string& key) const;

  std::string folder;
  uint32_t id = 0;                    // another bundle has another
  std::vector<int> capacities;        // sizes of the attention cache, the last is the context
  std::vector<std::string> weights;   // files of the checkpoint
  std::vector<std::string> fingerprints;  // of each, in a bundle that has them
  std::vector<Published> published;   // their tensors, in the order that `prepare` takes them
  std::vector<std::string> pieces;    // what each text token prints
  size_t small, temporal, encoder, decoder, parameters;  // how many arrays each part of the state has

 private:
  void read_manifest(const std::string& text);
  void read_line(const std::string& line);
  void read_text(const std::string& table);

  std::map<std::string, std::string> values_;
  std::map<std::string, std::string> files_;
};

}  // namespace moshi_mlx
