import Varlink

/// The parameters of Stats.
public struct StatsRequest: Equatable, Sendable {
    /// Only this device; nil: all that the caller may see.
    public var id: UInt32?
    /// Also each queue separately; only together with `id`.
    public var queues: Bool?

    public init(id: UInt32? = nil, queues: Bool? = nil) {
        self.id = id
        self.queues = queues
    }

    /// Decodes the parameters of a call.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON) throws(InterfaceError) {
        var fields = try FieldReader(parameters)
        id = try fields.optionalInteger("id")
        queues = try fields.optionalFlag("queues")
        try fields.finish()
    }

    public var json: JSON { .record([("id", id.map { .integer(clamping: $0) }), ("queues", queues.map(JSON.bool))]) }
}

/// The committed requests of one operation.
public struct OperationCount: Equatable, Sendable {
    public var requests: UInt64
    /// Bytes of the successful requests.
    public var bytes: UInt64
    /// The number of failed requests.
    public var errors: UInt64

    public init(requests: UInt64 = 0, bytes: UInt64 = 0, errors: UInt64 = 0) {
        self.requests = requests
        self.bytes = bytes
        self.errors = errors
    }

    /// Decodes a count.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(json: JSON, path: String = "", unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(json, path: path, unknown: unknown)
        requests = try fields.integer("requests")
        bytes = try fields.integer("bytes")
        errors = try fields.integer("errors")
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("requests", .integer(clamping: requests)), ("bytes", .integer(clamping: bytes)),
            ("errors", .integer(clamping: errors)),
        ])
    }
}

/// The counters of a queue, or of all queues of a device. The broker cannot verify them.
public struct Counts: Equatable, Sendable {
    public var read: OperationCount
    public var write: OperationCount
    public var flush: OperationCount
    public var discard: OperationCount
    public var writeZeroes: OperationCount
    /// Requests that the worker holds.
    public var inFlight: UInt64
    public var wakeUps: UInt64
    /// Wake-ups by the number of requests that they brought: element n counts those with 2^n to 2^(n+1)-1. Wake-ups
    /// that brought only completions are not counted.
    public var batchSizes: [UInt64]
    /// Measured requests by their time: element n counts those from `latencyBounds[n-1]` up to `latencyBounds[n]` of
    /// the reply; the last element is unbounded.
    public var latency: [UInt64]

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

    /// Decodes counters.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(json: JSON, path: String = "", unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(json, path: path, unknown: unknown)
        self.init()
        for (name, place) in Counts.operations {
            guard let value = fields.value(name) else { throw .invalidParameter(parameter: fields.fullName(name)) }
            self[keyPath: place] = try OperationCount(json: value, path: fields.fullName(name), unknown: unknown)
        }
        inFlight = try fields.integer("inFlight")
        wakeUps = try fields.integer("wakeUps")
        batchSizes = try fields.integers("batchSizes")
        latency = try fields.integers("latency")
        try fields.finish()
    }

    public var json: JSON {
        .record(
            Counts.operations.map { ($0.name, self[keyPath: $0.place].json) } + [
                ("inFlight", .integer(clamping: inFlight)), ("wakeUps", .integer(clamping: wakeUps)),
                ("batchSizes", .array(batchSizes.map { .integer(clamping: $0) })),
                ("latency", .array(latency.map { .integer(clamping: $0) })),
            ])
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

/// A device in the reply to Stats.
public struct DeviceStats: Equatable, Sendable {
    public var id: UInt32
    /// Distinguishes this device from a later one with the same id.
    public var generation: UInt64
    /// When the counters started at zero, in seconds since 1970; nil when the broker cannot read them.
    public var since: Int64?
    /// All queues together; nil when the broker cannot read them.
    public var total: Counts?
    /// Each queue separately, if requested.
    public var queues: [Counts]?

    public init(id: UInt32, generation: UInt64, since: Int64?, total: Counts?, queues: [Counts]? = nil) {
        self.id = id
        self.generation = generation
        self.since = since
        self.total = total
        self.queues = queues
    }

    /// Decodes the counters of a device.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(json: JSON, path: String = "", unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(json, path: path, unknown: unknown)
        id = try fields.integer("id")
        generation = try fields.integer("generation")
        since = try fields.optionalInteger("since")
        total = try fields.value("total").map { (json) throws(InterfaceError) in
            try Counts(json: json, path: fields.fullName("total"), unknown: unknown)
        }
        queues = try fields.optionalArray("queues") { (json, path) throws(InterfaceError) in
            try Counts(json: json, path: path, unknown: unknown)
        }
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("id", .integer(clamping: id)), ("generation", .integer(clamping: generation)),
            ("since", since.map(JSON.integer)), ("total", total.map(\.json)),
            ("queues", queues.map { .array($0.map(\.json)) }),
        ])
    }
}

/// The reply to Stats.
public struct StatsReply: Equatable, Sendable {
    /// The bounds of the elements of each `latency`, in nanoseconds.
    public var latencyBounds: [UInt64]
    public var devices: [DeviceStats]

    public init(latencyBounds: [UInt64], devices: [DeviceStats]) {
        self.latencyBounds = latencyBounds
        self.devices = devices
    }

    /// Decodes the parameters of a reply.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the parameter's name.
    public init(parameters: JSON, unknown: UnknownFields = .refuse) throws(InterfaceError) {
        var fields = try FieldReader(parameters, unknown: unknown)
        latencyBounds = try fields.integers("latencyBounds")
        devices = try fields.array("devices") { (json, path) throws(InterfaceError) in
            try DeviceStats(json: json, path: path, unknown: unknown)
        }
        try fields.finish()
    }

    public var json: JSON {
        .record([
            ("latencyBounds", .array(latencyBounds.map { .integer(clamping: $0) })),
            ("devices", .array(devices.map(\.json))),
        ])
    }
}

extension UInt64 {
    /// The sum, at most `UInt64.max`.
    func addingClamped(_ other: UInt64) -> UInt64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? .max : sum
    }
}
