// swift-tools-version: 6.0
// Moshi for Swift: add this repository's address to an app. docs/embedding.md is the guide.
import PackageDescription

// MLX comes from mlx-swift. On Linux, where this package is tested, from pip's MLX:
//   MOSHI_MLX=$(python -c 'import mlx.core, os; print(os.path.dirname(mlx.core.__file__))') swift test
// The flags below are made only then: SwiftPM refuses unsafe ones in a package that is somebody's dependency.
let wheel = Context.environment["MOSHI_MLX"]

let dependencies: [Package.Dependency] =
  wheel == nil ? [.package(url: "https://github.com/ml-explore/mlx-swift", "0.31.3"..<"0.33.0")] : []
let mlx: [Target.Dependency] = wheel == nil ? [.product(name: "MLX", package: "mlx-swift")] : []
let settings: [CXXSetting] = wheel.map { [.unsafeFlags(["-isystem", "\($0)/include"])] } ?? [.define("MOSHI_MLX_C"), .define("MOSHI_MLX_SWIFT")]
let linking: [LinkerSetting] =
  wheel.map {
    [
      .unsafeFlags([
        "-L\($0)/lib", "-Xlinker", "-rpath", "-Xlinker", "\($0)/lib", "-Xlinker", "--allow-shlib-undefined",
      ]), .linkedLibrary("mlx"),
    ]
  } ?? []

let package = Package(
  name: "moshi_mlx",
  platforms: [.macOS(.v14), .iOS(.v17)],
  products: [
    .library(name: "Moshi", targets: ["Moshi"]),
    .library(name: "MoshiTalk", targets: ["MoshiTalk"]),
    .executable(name: "moshi-talk", targets: ["moshi-talk"]),
  ],
  dependencies: dependencies,
  targets: [
    .target(
      name: "CMoshi", dependencies: mlx, path: "embed", sources: ["src"], publicHeadersPath: "include",
      cxxSettings: settings, linkerSettings: linking),
    .target(name: "Moshi", dependencies: ["CMoshi"] + mlx, path: "embed/swift/Moshi"),
    .target(name: "MoshiTalk", dependencies: ["Moshi"], path: "embed/swift/MoshiTalk"),
    .executableTarget(name: "moshi-talk", dependencies: ["Moshi", "MoshiTalk"], path: "embed/swift/moshi-talk"),
    .executableTarget(name: "moshi-time", dependencies: ["Moshi"], path: "embed/swift/moshi-time"),
    .testTarget(name: "MoshiTests", dependencies: ["Moshi", "MoshiTalk"], path: "embed/swift/MoshiTests"),
  ],
  swiftLanguageModes: [.v6],
  cxxLanguageStandard: .cxx20
)
