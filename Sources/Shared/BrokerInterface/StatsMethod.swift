/// The parameters of Stats.
public struct StatsRequest: Equatable, Sendable {
    public var id: UInt32?
    public var queues: Bool?

    /// A request for this device, or for all.
    public init(id: UInt32? = nil, queues: Bool? = nil) {
        self.id = id
        self.queues = queues
    }
}

extension StatsRequest: Structure {
    public init() { self.init(id: nil) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id, "Only this device.")
        try coder.member("queues", &queues, "Also each queue separately; only together with id. Default false.")
    }
}

/// The committed requests of one operation.
public struct OperationCount: Equatable, Sendable {
    public var requests: UInt64
    public var bytes: UInt64
    public var errors: UInt64

    /// A count with these values.
    public init(requests: UInt64, bytes: UInt64 = 0, errors: UInt64 = 0) {
        self.requests = requests
        self.bytes = bytes
        self.errors = errors
    }
}

extension OperationCount: Structure {
    public init() { self.init(requests: 0) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("requests", &requests)
        try coder.member("bytes", &bytes, "Bytes of the successful requests.")
        try coder.member("errors", &errors, "The number of failed requests.")
    }
}

/// The counters of a queue, or of all queues of a device. The broker cannot verify them. `members` explains each.
public struct Counts: Equatable, Sendable {
    public var read: OperationCount
    public var write: OperationCount
    public var flush: OperationCount
    public var discard: OperationCount
    public var writeZeroes: OperationCount
    public var inFlight: UInt64
    public var wakeUps: UInt64
    public var batchSizes: [UInt64]
    public var latency: [UInt64]

    /// Counters with these values.
    public init(
        read: OperationCount = OperationCount(), write: OperationCount = OperationCount(),
        flush: OperationCount = OperationCount(), discard: OperationCount = OperationCount(),
        writeZeroes: OperationCount = OperationCount(), inFlight: UInt64 = 0, wakeUps: UInt64 = 0,
        batchSizes: [UInt64] = [], latency: [UInt64] = []
    ) {
        self.read = read
        self.write = write
        self.flush = flush
        self.discard = discard
        self.writeZeroes = writeZeroes
        self.inFlight = inFlight
        self.wakeUps = wakeUps
        self.batchSizes = batchSizes
        self.latency = latency
    }

    /// The operations by their names on the wire, in order.
    public static var operations: [(name: String, place: WritableKeyPath<Counts, OperationCount>)] {
        [
            ("read", \.read), ("write", \.write), ("flush", \.flush), ("discard", \.discard),
            ("writeZeroes", \.writeZeroes),
        ]
    }

    /// The errors of all operations.
    public var errors: UInt64 { Counts.operations.reduce(0) { $0.addingClamped(self[keyPath: $1.place].errors) } }

    /// The sums of both.
    public static func + (left: Counts, right: Counts) -> Counts {
        left.combined(right) { $0.addingClamped($1) }
    }

    /// The increase since `earlier`, at least 0. `inFlight` is the present value.
    public func since(_ earlier: Counts) -> Counts {
        var result = combined(earlier) { $0 > $1 ? $0 - $1 : 0 }
        result.inFlight = inFlight
        return result
    }

    private func combined(_ other: Counts, _ combine: (UInt64, UInt64) -> UInt64) -> Counts {
        func lists(_ left: [UInt64], _ right: [UInt64]) -> [UInt64] {
            (0..<max(left.count, right.count)).map { index in
                combine(index < left.count ? left[index] : 0, index < right.count ? right[index] : 0)
            }
        }
        var result = Counts(
            inFlight: combine(inFlight, other.inFlight), wakeUps: combine(wakeUps, other.wakeUps),
            batchSizes: lists(batchSizes, other.batchSizes), latency: lists(latency, other.latency))
        for (_, place) in Counts.operations {
            let (mine, theirs) = (self[keyPath: place], other[keyPath: place])
            result[keyPath: place] = OperationCount(
                requests: combine(mine.requests, theirs.requests), bytes: combine(mine.bytes, theirs.bytes),
                errors: combine(mine.errors, theirs.errors))
        }
        return result
    }
}

extension Counts: Structure {
    public init() { self.init(inFlight: 0) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        for (name, place) in Counts.operations { try coder.member(name, &self[keyPath: place]) }
        try coder.member("inFlight", &inFlight, "Requests that the worker holds.")
        try coder.member("wakeUps", &wakeUps)
        try coder.member(
            "batchSizes", &batchSizes,
            """
            Wake-ups by the number of requests that they brought: element n counts those with 2^n to 2^(n+1)-1. Wake-ups
            that brought only completions are not counted. Elements that are missing at the end are 0.
            """)
        try coder.member(
            "latency", &latency,
            """
            A sample of the requests, by the time from the wake-up that brought a request to the end of the one that gave
            it back: element n counts those below latencyBounds[n] and not below the bound before; the last element has
            no bound. Elements that are missing at the end are 0. Empty on hosts whose processors' own clocks do not run
            in step: there no time is taken.
            """)
    }
}

/// A device in the reply to Stats.
public struct DeviceStats: Equatable, Sendable {
    public var id: UInt32
    public var generation: UInt64
    public var since: Int64?
    public var total: Counts?
    public var queues: [Counts]?

    /// The counters of a device.
    public init(id: UInt32, generation: UInt64, since: Int64?, total: Counts?, queues: [Counts]? = nil) {
        self.id = id
        self.generation = generation
        self.since = since
        self.total = total
        self.queues = queues
    }
}

extension DeviceStats: Structure {
    public init() { self.init(id: 0, generation: 0, since: nil, total: nil) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id)
        try coder.member("generation", &generation, "Distinguishes the device from a later one with the same id.")
        try coder.member(
            "since", &since,
            "When the counters started at zero, in seconds since 1970; null when the broker cannot read them.")
        try coder.member(
            "total", &total,
            "All queues together; null when there is no page to read, as while a device is being added.")
        try coder.member("queues", &queues, "Each queue separately, if requested.")
    }
}

/// The reply to Stats.
public struct StatsReply: Equatable, Sendable {
    public var latencyBounds: [UInt64]
    public var devices: [DeviceStats]

    /// A reply with these devices.
    public init(latencyBounds: [UInt64], devices: [DeviceStats]) {
        self.latencyBounds = latencyBounds
        self.devices = devices
    }
}

extension StatsReply: Structure {
    public init() { self.init(latencyBounds: [], devices: []) }

    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("latencyBounds", &latencyBounds, "The bounds of the elements of each latency, in nanoseconds.")
        try coder.member("devices", &devices)
    }
}

extension UInt64 {
    /// The sum, at most `UInt64.max`.
    func addingClamped(_ other: UInt64) -> UInt64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? .max : sum
    }
}
