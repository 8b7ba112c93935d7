import Glibc

/// One thing that is fuzzed: a parser with what must hold of whatever it accepts.
struct FuzzTarget: Sendable {
    let name: String
    /// Bytes: room for everything that a parser tells apart. Limits that lie beyond are met by other means.
    let longestInput: Int
    /// Ends the process when a property does not hold; the fuzzer then saves the input.
    let test: @Sendable ([UInt8]) -> Void

    static let all: [FuzzTarget] = [
        FuzzTarget(name: "json", longestInput: 512, test: testJSON),
        FuzzTarget(name: "varlink", longestInput: 384, test: testVarlink),
        FuzzTarget(name: "seccomp-policy", longestInput: 400, test: testSeccompPolicy),
        FuzzTarget(name: "ring-policy", longestInput: 300, test: testRingPolicy),
        FuzzTarget(name: "access-policy", longestInput: 320, test: testAccessPolicy),
        FuzzTarget(name: "worker-message", longestInput: 256, test: testWorkerMessages),
        FuzzTarget(name: "io-descriptor", longestInput: 256, test: testDescriptors),
        FuzzTarget(name: "launch-message", longestInput: 192, test: testLaunchMessages),
        FuzzTarget(name: "state-record", longestInput: 1280, test: testStateRecord),
        FuzzTarget(name: "statistics", longestInput: 642, test: testStatistics),
        FuzzTarget(name: "nbd-reply", longestInput: 1024, test: testReplies),
        FuzzTarget(name: "varlink-reply", longestInput: 900, test: testReply),
        FuzzTarget(name: "nbd-negotiation", longestInput: 512, test: testNegotiation),
        FuzzTarget(name: "nbd-uri", longestInput: 160, test: testAddress),
        FuzzTarget(name: "fault-plan", longestInput: 1200, test: testFaultPlan),
        FuzzTarget(name: "partitions", longestInput: 1024, test: testPartitions),
    ]

    /// libFuzzer's function takes no context.
    nonisolated(unsafe) static var current = all[0]
}

/// Ends the process unless `condition` holds: libFuzzer reports the signal and saves the input.
func require(
    _ condition: Bool, _ what: @autoclosure () -> String, file: StaticString = #fileID, line: UInt = #line
) {
    if condition { return }
    let text = "ubd-fuzz: does not hold (\(file):\(line)): \(what())\n"
    _ = Array(text.utf8).withUnsafeBytes { write(2, $0.baseAddress, $0.count) }
    abort()
}

private let targetVariable = "UBD_FUZZ_TARGET"

@_silgen_name("LLVMFuzzerRunDriver")
private func runFuzzer(
    _ count: UnsafeMutablePointer<Int32>,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ test: @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32
) -> Int32

/// `ubd-fuzz --list`, `ubd-fuzz --answers FILE...` or `ubd-fuzz TARGET` with libFuzzer's own arguments.
func run() -> Int32 {
    let arguments = CommandLine.arguments
    // libFuzzer sees its own arguments only, and starts this program again with them when it merges.
    var name = getenv(targetVariable).map { String(cString: $0) }
    var ownArguments = 0
    switch arguments.dropFirst().first {
    case "--list":
        for target in FuzzTarget.all { print(target.name, target.longestInput) }
        return 0
    case "--answers":
        for path in arguments.dropFirst(2) { print(jsonAnswer(path)) }
        return 0
    case .some(let word) where name == nil:
        name = word
        ownArguments = 1
    default: break
    }
    guard let target = FuzzTarget.all.first(where: { $0.name == name }) else { return usage() }
    FuzzTarget.current = target
    setenv(targetVariable, target.name, 1)
    var count = CommandLine.argc - Int32(ownArguments)
    var pointers = CommandLine.unsafeArgv + ownArguments
    pointers[0] = CommandLine.unsafeArgv[0]
    return runFuzzer(&count, &pointers) { bytes, count in
        FuzzTarget.current.test(Array(UnsafeBufferPointer(start: bytes, count: count)))
        return 0
    }
}

private func usage() -> Int32 {
    print("usage: ubd-fuzz --list | --answers FILE... | TARGET [libFuzzer's arguments]; see Tests/fuzz/run --help")
    return 2
}

/// True for one input in `interval`, always the same ones: for what takes too long to do with each.
func isSample(_ input: [UInt8], oneIn interval: UInt32) -> Bool {
    input.reduce(0) { ($0 ^ UInt32($1)) &* 16_777_619 } >> 8 % interval == 0
}

/// Takes an input apart, for targets whose input is not one text. Past the end there are zeros.
struct Script {
    private let bytes: [UInt8]
    private var position = 0

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var isAtEnd: Bool { position >= bytes.count }

    mutating func next<T: FixedWidthInteger>(_ type: T.Type = T.self) -> T {
        var value: T = 0
        for index in 0..<MemoryLayout<T>.size where position < bytes.count {
            value |= T(truncatingIfNeeded: bytes[position]) << T(8 * index)
            position += 1
        }
        return value
    }

    mutating func next(bytes count: Int) -> [UInt8] {
        let part = Array(bytes[min(position, bytes.count)...].prefix(count))
        position += part.count
        return part
    }

    mutating func rest() -> [UInt8] { next(bytes: bytes.count) }
}
