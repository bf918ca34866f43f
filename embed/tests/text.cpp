// Text fragment by fragment, against Python's: moshi-text CASES (see cases.py)
#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "utf8.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::string folder = argv[1];
  std::ifstream table(folder + "/text.bin", std::ios::binary), lines(folder + "/text.txt");
  std::vector<std::string> pieces;
  for (unsigned char n[2]; table.read(reinterpret_cast<char*>(n), 2);) {
    std::string piece(size_t(n[0] | n[1] << 8), '\0');
    table.read(piece.data(), long(piece.size()));
    pieces.push_back(piece);
  }
  moshi_mlx::Utf8 utf8;
  size_t token, count = 0, wrong = 0;
  for (std::string expected; lines >> token >> expected; count++) {
    moshi_mlx::Utf8 again;  // as a restored conversation goes on
    again(utf8.held());
    auto fragment = utf8(pieces.at(token));
    std::string hex = "x";
    for (unsigned char c : fragment) hex += "0123456789abcdef"[c >> 4], hex += "0123456789abcdef"[c & 15];
    wrong += hex != expected || again(pieces[token]) != fragment || again.held() != utf8.held();
  }
  std::cout << "text: " << count << " tokens, " << wrong << " wrong\n";
  return count < 1000 || wrong;
}
