// swift-tools-version: 6.3
import PackageDescription

// Every target, Swift and C alike, is built with _GNU_SOURCE: otherwise the importer builds Glibc, CDispatch and our own
// C modules with different macros and their definitions clash (docs/building.md).
let cSettings: [CSetting] = [.define("_GNU_SOURCE")]

let swiftSettings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .treatAllWarnings(as: .error),
    .enableUpcomingFeature("ExistentialAny"),
]

/// A module of Sources/Shared: no executable is imported from here, and the modules form no circle.
func shared(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(
        name: name, dependencies: dependencies, path: "Sources/Shared/\(name)",
        cSettings: cSettings, swiftSettings: swiftSettings)
}

/// The unit tests of one module, in a folder beside the others under Tests/.
func tests(_ module: String, of dependencies: [Target.Dependency]) -> Target {
    .testTarget(
        name: "\(module)Tests", dependencies: dependencies, path: "Tests/Unit/\(module)Tests",
        cSettings: cSettings, swiftSettings: swiftSettings)
}

let package = Package(
    name: "ubd",
    products: [
        .executable(name: "ubd", targets: ["ubd"]),
        .executable(name: "ubd-broker", targets: ["ubd-broker"]),
        .executable(name: "ubd-worker", targets: ["ubd-worker"]),
        .executable(name: "ubd-nbd", targets: ["ubd-nbd"]),
        .executable(name: "ubd-crypt", targets: ["ubd-crypt"]),
        // Not installed: what the worker's tests preload to play the driver.
        .library(name: "ubd-stand-in", type: .dynamic, targets: ["CStandIn"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.0")
    ],
    targets: [
        // C: three system libraries and two small targets of our own.
        .systemLibrary(
            name: "CLibseccomp", pkgConfig: "libseccomp", providers: [.apt(["libseccomp-dev"])]),
        .systemLibrary(name: "CLiburing", pkgConfig: "liburing", providers: [.apt(["liburing-dev"])]),
        .systemLibrary(name: "CLibcap", pkgConfig: "libcap", providers: [.apt(["libcap-dev"])]),
        .systemLibrary(name: "CGnuTLS", pkgConfig: "gnutls", providers: [.apt(["libgnutls28-dev"])]),
        // The header has one place on every Debian, so neither needs a C file.
        .systemLibrary(name: "CGcrypt", providers: [.apt(["libgcrypt20-dev"])]),
        .systemLibrary(name: "CCryptsetup", providers: [.apt(["libcryptsetup-dev"])]),
        .target(name: "CShims", cSettings: cSettings),
        .target(name: "CLauncher", dependencies: ["CLibcap"], cSettings: cSettings),

        // Shared modules, from the kernel's edge upwards.
        shared("SystemCalls", ["CShims"]),
        shared("KernelABI", ["SystemCalls", "CLiburing"]),
        shared("Ring", ["SystemCalls", "KernelABI", "CLiburing"]),
        shared("Numbers"),
        shared("Policy", ["Numbers"]),
        shared("PolicyCompiler", ["Policy", "CLibseccomp"]),
        shared("Sandbox", ["SystemCalls", "CShims"]),
        shared("Targets"),
        shared("NBDProtocol"),
        shared("WorkerProtocol", ["SystemCalls", "KernelABI", "Targets", "Numbers"]),
        shared("Varlink"),
        shared("BrokerInterface", ["Varlink", "Numbers", "Targets"]),
        shared("Dialing", ["Varlink", "SystemCalls", "Numbers", "CShims"]),
        shared("Programs", ["SystemCalls", "CShims"]),
        shared("PartitionTables"),

        // The three programs.
        .executableTarget(
            name: "ubd",
            dependencies: [
                "SystemCalls", "BrokerInterface", "Varlink", "Numbers", "Targets", "Dialing", "Programs",
                "PartitionTables",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            cSettings: cSettings, swiftSettings: swiftSettings),
        .executableTarget(
            name: "ubd-broker",
            dependencies: [
                "SystemCalls", "KernelABI", "Ring", "Policy", "PolicyCompiler", "Sandbox", "WorkerProtocol",
                "Varlink", "BrokerInterface", "Numbers", "Targets", "CShims", "CLauncher", "CLiburing", "CLibcap",
            ],
            cSettings: cSettings, swiftSettings: swiftSettings),
        // Dials and keeps the connections of nbd devices. A program of its own, so that GnuTLS is loaded for these only.
        .target(
            name: "NBDClient",
            dependencies: [
                "SystemCalls", "BrokerInterface", "Varlink", "Numbers", "Targets", "NBDProtocol", "Dialing", "Programs",
                "CShims", "CGnuTLS",
            ],
            path: "Sources/ubd-nbd", exclude: ["Main"], cSettings: cSettings, swiftSettings: swiftSettings),
        .executableTarget(
            name: "ubd-nbd", dependencies: ["NBDClient"], path: "Sources/ubd-nbd/Main",
            cSettings: cSettings, swiftSettings: swiftSettings),
        // Opens LUKS volumes. A program of its own, so that libcryptsetup is loaded for these only.
        .target(
            name: "CryptClient",
            dependencies: [
                "SystemCalls", "Numbers", "Varlink", "Dialing", "Programs", "CShims", "CCryptsetup", "CGcrypt",
            ],
            path: "Sources/ubd-crypt", exclude: ["Main"], cSettings: cSettings, swiftSettings: swiftSettings),
        .executableTarget(
            name: "ubd-crypt", dependencies: ["CryptClient"], path: "Sources/ubd-crypt/Main",
            cSettings: cSettings, swiftSettings: swiftSettings),
        // The queue engine and all targets are one module, so that the compiler makes one piece of a queue's loop and its
        // target; the program itself is a thin main, so that tests and the benchmark see the same engine.
        .target(
            name: "Worker",
            dependencies: [
                "SystemCalls", "KernelABI", "Ring", "Sandbox", "WorkerProtocol", "Numbers", "Targets", "NBDProtocol",
                "CShims", "CGcrypt",
            ],
            path: "Sources/ubd-worker", exclude: ["Main"], cSettings: cSettings, swiftSettings: swiftSettings),
        .executableTarget(
            name: "ubd-worker", dependencies: ["Worker"], path: "Sources/ubd-worker/Main",
            cSettings: cSettings, swiftSettings: swiftSettings),
        .executableTarget(
            name: "engine-benchmark", dependencies: ["Worker", "Targets", "NBDProtocol", "CShims"],
            path: "Benchmarks/engine",
            exclude: ["thresholds"], cSettings: cSettings, swiftSettings: swiftSettings),

        // The worker without any wall, to measure what they cost; no broker takes it.
        .executableTarget(
            name: "ubd-bare-worker", dependencies: ["Worker", "WorkerProtocol"], path: "Benchmarks/system/bare-worker",
            cSettings: cSettings, swiftSettings: swiftSettings),

        // For the lab: a program that is a worker until it tries to be more (Tests/lab/groups/escape).
        .target(name: "CEscape", path: "Tests/escape/CEscape", cSettings: cSettings),
        .executableTarget(
            name: "ubd-escape",
            dependencies: [
                "Worker", "WorkerProtocol", "Ring", "KernelABI", "SystemCalls", "CShims", "CEscape",
            ],
            path: "Tests/escape/ubd-escape", cSettings: cSettings, swiftSettings: swiftSettings),

        // For unit tests: what the C headers say, and a program that tries system calls under a filter.
        .target(name: "CPolicyHeaders", path: "Tests/Support/CPolicyHeaders", cSettings: cSettings),
        .target(name: "CStandIn", path: "Tests/Support/CStandIn", cSettings: cSettings),
        // For tests of what ends a process.
        .target(name: "CForked", path: "Tests/Support/CForked", cSettings: cSettings),
        .target(name: "Forked", dependencies: ["CForked"], path: "Tests/Support/Forked", swiftSettings: swiftSettings),
        .executableTarget(name: "ubd-policy-probe", path: "Tests/Support/ubd-policy-probe", cSettings: cSettings),

        // Unit tests: no ublk needed.
        tests("SystemCalls", of: ["SystemCalls"]),
        tests("KernelABI", of: ["KernelABI"]),
        tests("Ring", of: ["Ring", "KernelABI", "SystemCalls", "Forked"]),
        tests("Policy", of: ["Policy", "Numbers", "CPolicyHeaders"]),
        tests("PolicyCompiler", of: ["PolicyCompiler", "Policy", "SystemCalls", "CLibseccomp"]),
        tests("Sandbox", of: ["Sandbox", "SystemCalls"]),
        tests("WorkerProtocol", of: ["WorkerProtocol", "KernelABI", "SystemCalls", "Numbers", "Targets"]),
        tests("Varlink", of: ["Varlink"]),
        tests("Programs", of: ["Programs", "SystemCalls"]),
        tests("PartitionTables", of: ["PartitionTables"]),
        tests("BrokerInterface", of: ["BrokerInterface", "Varlink", "Numbers", "Targets"]),
        tests(
            "NBDClient",
            of: ["NBDClient", "NBDProtocol", "Dialing", "BrokerInterface", "Varlink", "SystemCalls", "Forked"]),
        tests(
            "Command",
            of: [
                "ubd", "ubd-nbd", "ubd-crypt", "Numbers", "Targets", "Forked", "PartitionTables", "Policy", "Programs",
            ]),
        tests("Broker", of: ["ubd-broker", "WorkerProtocol", "Targets", "KernelABI", "SystemCalls", "CLauncher"]),
        tests(
            "Worker",
            of: [
                "Worker", "ubd-worker", "WorkerProtocol", "KernelABI", "SystemCalls", "Ring", "Sandbox", "CShims",
                "Policy", "PolicyCompiler", "CLiburing", "Targets", "NBDProtocol", "Forked",
            ]),
    ]
)

// Tests/fuzz/run sets this: the fuzzers, and the broker as a module to link with them. They are built with libFuzzer,
// so no other build sees them; what needs another package or is a test is left out.
if Context.environment["UBD_FUZZ"] != nil {
    let broker = package.targets.first { $0.name == "ubd-broker" }!
    package.targets.removeAll {
        $0.isTest || ["ubd", "ubd-nbd", "ubd-crypt", "CryptClient", "ubd-broker"].contains($0.name)
    }
    package.products = [.executable(name: "ubd-fuzz", targets: ["ubd-fuzz"])]
    package.dependencies = []
    package.targets += [
        .target(
            name: "ubd-broker", dependencies: broker.dependencies, path: "Sources/ubd-broker", exclude: ["main.swift"],
            cSettings: cSettings, swiftSettings: swiftSettings),
        .executableTarget(
            name: "ubd-fuzz",
            dependencies: [
                "ubd-broker", "Worker", "SystemCalls", "KernelABI", "Ring", "Policy", "PolicyCompiler",
                "WorkerProtocol",
                "Varlink", "BrokerInterface", "Numbers", "Targets", "NBDClient", "NBDProtocol", "PartitionTables",
            ],
            path: "Tests/fuzz/ubd-fuzz", cSettings: cSettings, swiftSettings: swiftSettings),
    ]
}
