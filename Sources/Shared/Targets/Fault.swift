extension TargetManifest {
    public static let fault = TargetManifest(
        name: "fault", number: 7, summary: "Serves a regular file and fails as its rules say, for tests",
        inputs: [
            TargetInput(.data, name: "file", letter: "f", help: "The file behind it"),
            TargetInput(.control, name: "control", help: "A file for commands and the log, which ubd makes"),
        ],
        options: [
            .offset,
            .size(otherwise: "up to the end of the file"),
            .blockSize(initial: 512),
            TargetOption(
                TargetOption.Fault.rules, name: "rules", kind: .text(0...FaultPlan.longestText), initial: .text(""),
                help: "What fails, as in 'read error=EIO rate=1%; write delay=5ms' (docs/fault.md)"),
            TargetOption(
                TargetOption.Fault.seed, name: "seed", kind: .count(0...UInt64(Int64.max)), initial: .number(0),
                help: "The same seed and the same requests give the same failures"),
            TargetOption(
                TargetOption.Fault.cache, name: "cache",
                kind: .bytes(0...256 << 20, multipleOf: 4096, powerOfTwo: false), initial: .number(0),
                help: "Volatile write cache: what was not flushed is lost at a power cut"),
            TargetOption(
                TargetOption.Fault.keep, name: "keep", kind: .choice(["none", "random"]), initial: .number(0),
                help: "What a power cut leaves of the cache"),
            TargetOption(
                TargetOption.Fault.cutAfter, name: "cut-after", kind: .count(1...UInt64(Int64.max)),
                otherwise: "never", help: "The power is cut after so many writes"),
        ],
        // The worker reads and changes data in its own memory. One queue has the cache, the counts and the order of requests.
        modes: [.copy], queues: .one, submissions: .fault, cacheOption: TargetOption.Fault.cache,
        workerData: WorkerData(reads: true, writes: true), survival: .inputs)
}

extension Submissions {
    /// Of the queue: the turn of the control file (timer, read, write), and the cache's write to the file.
    @inlinable @inline(__always)
    public static var fault: Submissions { Submissions(perRequest: 1, ofQueue: 2) }
}

extension TargetOption {
    /// Numbers of target fault's own options.
    public enum Fault {
        public static let rules: Number = 16
        public static let seed: Number = 17
        public static let cache: Number = 18
        public static let keep: Number = 19
        public static let cutAfter: Number = 20
    }
}

// The options of a fault device.
extension DeviceOptions {
    /// As the user wrote them.
    public var faultRules: String {
        if case .text(let text)? = self[TargetOption.Fault.rules] { text } else { "" }
    }
    public var faultSeed: UInt64 { self[TargetOption.Fault.seed]?.number ?? 0 }
    /// Bytes; 0: no cache.
    public var faultCache: UInt64 { self[TargetOption.Fault.cache]?.number ?? 0 }
    /// A power cut leaves some of the sectors that were not flushed.
    public var keepsSome: Bool { self[TargetOption.Fault.keep]?.number == 1 }
    /// nil: the power is never cut by a count.
    public var cutAfter: UInt64? { self[TargetOption.Fault.cutAfter]?.number }
}
