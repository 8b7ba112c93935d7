import Numbers

/// A request for a device.
public struct AccessRequest: Sendable, Equatable {
    public var target: String
    public var readOnly: Bool
    public var queues: UInt64
    /// Requests in flight per queue.
    public var depth: UInt64
    /// Bytes of the largest I/O request.
    public var maxIOBytes: UInt64
    /// Size of the device in bytes; nil while unknown (a file's size is known only after the worker has opened the
    /// target).
    public var sizeBytes: UInt64?
    /// Seconds; nil: the default, clamped to the line's bounds.
    public var ioTimeout: UInt64?
    /// The requested device number; nil: any.
    public var id: UInt64?
    /// The requested processors for its queues; nil: any.
    public var cpus: NumberList?
    /// Connections to a server; nil: it is a device of a target without.
    public var connections: UInt64?
    /// Buffers of each queue beside one for each request in flight.
    public var spareBuffers: UInt64
    /// Bytes of memory that the worker takes beside its buffers: tables or a cache.
    public var extraBytes: UInt64
    /// Bytes of memory for the device's content; 0 unless it is a memory disk.
    public var diskBytes: UInt64

    public init(
        target: String, readOnly: Bool, queues: UInt64, depth: UInt64, maxIOBytes: UInt64, sizeBytes: UInt64?,
        ioTimeout: UInt64? = nil, id: UInt64? = nil, cpus: NumberList? = nil, connections: UInt64? = nil,
        spareBuffers: UInt64 = 0, extraBytes: UInt64 = 0, diskBytes: UInt64 = 0
    ) {
        self.target = target
        self.readOnly = readOnly
        self.queues = queues
        self.depth = depth
        self.maxIOBytes = maxIOBytes
        self.sizeBytes = sizeBytes
        self.ioTimeout = ioTimeout
        self.id = id
        self.cpus = cpus
        self.connections = connections
        self.spareBuffers = spareBuffers
        self.extraBytes = extraBytes
        self.diskBytes = diskBytes
    }

    /// Bytes of memory that `bytes` of a memory disk take in a control group: beside each page the kernel's index of it, which is
    /// 576 bytes for 64 pages (lib/xarray.c).
    static func groupBytes(ofDisk bytes: UInt64) -> UInt64 { bytes.saturatingAdd(bytes / 256) }

    /// Bytes of I/O buffers that the device pins: queues * (depth + spare buffers) * largest request, and tables or a cache;
    /// saturating.
    public var memoryBytes: UInt64 {
        queues.saturatingMultiply(depth.saturatingAdd(spareBuffers)).saturatingMultiply(maxIOBytes)
            .saturatingAdd(extraBytes)
    }

    /// Bytes that a device needs at least in its control group in addition to its buffers: the worker's program, stacks
    /// and rings, twice, since an upgrade rehearses a second worker. Both together use less than half of it.
    public static let otherBytes: UInt64 = 64 << 20

    /// Tasks of its control group: the main thread, the thread for ranges of a file, and for each queue a thread and up to
    /// 8 + 2 helper threads of its ring (SealedRing). Doubled, since an upgrade rehearses a second worker beside the one that serves.
    public var tasks: UInt64 { queues.saturatingMultiply(11).saturatingAdd(2).saturatingMultiply(2) }
}

/// What a user already has, without this request.
public struct AccessUsage: Sendable, Equatable {
    public var devices: UInt64
    /// The sum of `AccessRequest.memoryBytes`.
    public var memoryBytes: UInt64

    /// The sum of `AccessRequest.diskBytes`.
    public var diskBytes: UInt64

    public init(devices: UInt64, memoryBytes: UInt64, diskBytes: UInt64 = 0) {
        self.devices = devices
        self.memoryBytes = memoryBytes
        self.diskBytes = diskBytes
    }

    /// Bytes that all devices of the user need, including the requested one.
    func groupBytes(with request: AccessRequest) -> UInt64 {
        devices.saturatingAdd(1).saturatingMultiply(AccessRequest.otherBytes).saturatingAdd(memoryBytes)
            .saturatingAdd(request.memoryBytes)
            .saturatingAdd(AccessRequest.groupBytes(ofDisk: diskBytes.saturatingAdd(request.diskBytes)))
    }
}

/// Why a request for a device is refused.
public enum AccessRefusal: Sendable, Equatable {
    /// No line matches. `candidates` are the `allow` lines of the target, which tell the user which users or groups may
    /// have it.
    case noRule(candidates: [AccessRule])
    /// The first matching line says `deny`.
    case denied(AccessRule)
    /// The line allows only read-only devices.
    case readOnlyOnly(AccessRule)
    /// Above a limit of the line. `limit` is the key as written, for example `max-depth`; `wanted` is the value that
    /// the request would lead to, in the limit's unit. For `max-devices` and `max-memory` it includes what the user
    /// already has.
    case overLimit(AccessRule, limit: String, maximum: UInt64, wanted: UInt64)
    /// Outside the line's `io-timeout`, in seconds.
    case ioTimeout(AccessRule, bounds: ClosedRange<UInt64>, wanted: UInt64)
    /// A device number that is not in the line's `ids`.
    case id(AccessRule, allowed: NumberList, wanted: UInt64)
    /// The deciding line has no `ids`, and `holder`, another line, reserves this number.
    case reservedID(AccessRule, holder: AccessRule, wanted: UInt64)
    /// A requested processor that is not in the line's `cpus`; `wanted` is the first one.
    case cpus(AccessRule, allowed: NumberList, wanted: UInt64)
}

public enum AccessDecision: Sendable, Equatable {
    case allowed(AccessRule)
    case refused(AccessRefusal)
}

/// The most that a peer may have over all targets: an overview for `ubd info`. Only `AccessPolicy.decide` decides.
public struct AccessOverview: Sendable, Equatable {
    /// The targets that the peer may use, each with the line that allows it.
    public let rules: [(target: String, rule: AccessRule)]
    /// The widest limit of each kind in these lines.
    public let limits: AccessLimits

    public var targets: [String] { rules.map(\.target) }

    public static func == (one: AccessOverview, other: AccessOverview) -> Bool {
        one.limits == other.limits && one.rules.elementsEqual(other.rules, by: ==)
    }
}

extension AccessPolicy {
    /// Decides on a request. It compares the limits of the deciding line with the request and the user's usage. When a
    /// limit is exceeded it tries no later line.
    public func decide(_ peer: AccessPeer, _ request: AccessRequest, usage: AccessUsage) -> AccessDecision {
        guard let rule = rule(for: peer, target: request.target) else {
            return .refused(.noRule(candidates: rules.filter { $0.isAllow && $0.fits(target: request.target) }))
        }
        guard rule.isAllow else { return .refused(.denied(rule)) }
        if rule.limits.readOnlyOnly && !request.readOnly { return .refused(.readOnlyOnly(rule)) }
        let wanted: [(limit: String, maximum: UInt64?, wanted: UInt64)] = [
            ("max-devices", rule.limits.maxDevices, usage.devices.saturatingAdd(1)),
            ("max-queues", rule.limits.maxQueues, request.queues),
            ("max-depth", rule.limits.maxDepth, request.depth),
            ("max-io-size", rule.limits.maxIOBytes, request.maxIOBytes),
            ("max-memory", rule.limits.maxMemoryBytes, usage.memoryBytes.saturatingAdd(request.memoryBytes)),
            // Without the key nobody has memory disks: no line gives away the host's memory before its writer knew of them.
            (
                "memory-disks", request.diskBytes == 0 ? nil : rule.limits.memoryDisks ?? 0,
                usage.diskBytes.saturatingAdd(request.diskBytes)
            ),
            ("max-size", rule.limits.maxSizeBytes, request.sizeBytes ?? 0),
            // Devices that could not start within these limits are refused here; their workers would die again and
            // again.
            (
                "device-memory", rule.limits.deviceMemory,
                request.memoryBytes.saturatingAdd(AccessRequest.otherBytes)
                    .saturatingAdd(AccessRequest.groupBytes(ofDisk: request.diskBytes))
            ),
            ("user-memory", rule.limits.userMemory, usage.groupBytes(with: request)),
            ("device-tasks", rule.limits.deviceTasks, request.tasks),
            (
                "connections", rule.limits.connections ?? AccessLimits.usualConnections, request.connections ?? 0
            ),
        ]
        for (limit, maximum, wanted) in wanted {
            if let maximum, wanted > maximum {
                return .refused(.overLimit(rule, limit: limit, maximum: maximum, wanted: wanted))
            }
        }
        if let bounds = rule.limits.ioTimeout, let wanted = request.ioTimeout, !bounds.contains(wanted) {
            return .refused(.ioTimeout(rule, bounds: bounds, wanted: wanted))
        }
        if let refusal = refusal(ofNumbersIn: request, rule) { return .refused(refusal) }
        return .allowed(rule)
    }

    /// Refuses device and processor numbers that the line does not allow.
    private func refusal(ofNumbersIn request: AccessRequest, _ rule: AccessRule) -> AccessRefusal? {
        if let wanted = request.id {
            let number = Int(clamping: wanted)
            if let allowed = rule.limits.ids {
                if !allowed.contains(number) { return .id(rule, allowed: allowed, wanted: wanted) }
            } else if let holder = rules.first(where: { $0.limits.ids?.contains(number) == true }) {
                return .reservedID(rule, holder: holder, wanted: wanted)
            }
        }
        if let allowed = rule.limits.cpus, let wanted = request.cpus?.first(notIn: allowed) {
            return .cpus(rule, allowed: allowed, wanted: UInt64(wanted))
        }
        return nil
    }

    /// An overview for the peer over `targets`; nil when it may use none of them.
    public func overview(for peer: AccessPeer, targets: [String]) -> AccessOverview? {
        let rules = targets.compactMap { target in
            rule(for: peer, target: target).flatMap { $0.isAllow ? (target: target, rule: $0) : nil }
        }
        guard let first = rules.first else { return nil }
        let limits = rules.dropFirst().reduce(first.rule.limits) { $0.widest($1.rule.limits) }
        return AccessOverview(rules: rules, limits: limits)
    }
}

extension AccessLimits {
    /// The wider of both, limit by limit.
    fileprivate func widest(_ other: AccessLimits) -> AccessLimits {
        func greater(_ limit: KeyPath<AccessLimits, UInt64?>) -> UInt64? {
            guard let one = self[keyPath: limit], let two = other[keyPath: limit] else { return nil }
            return max(one, two)
        }
        var result = AccessLimits()
        result.readOnlyOnly = readOnlyOnly && other.readOnlyOnly
        result.maxDevices = greater(\.maxDevices)
        result.maxQueues = greater(\.maxQueues)
        result.maxDepth = greater(\.maxDepth)
        result.maxMemoryBytes = greater(\.maxMemoryBytes)
        if memoryDisks != nil || other.memoryDisks != nil {
            result.memoryDisks = max(memoryDisks ?? 0, other.memoryDisks ?? 0)
        }
        result.maxSizeBytes = greater(\.maxSizeBytes)
        result.maxIOBytes = greater(\.maxIOBytes)
        result.maxStarts = greater(\.maxStarts)
        if let one = penalty, let two = other.penalty { result.penalty = min(one, two) }
        if let one = ioTimeout, let two = other.ioTimeout {
            result.ioTimeout = min(one.lowerBound, two.lowerBound)...max(one.upperBound, two.upperBound)
        }
        if let one = ids, let two = other.ids { result.ids = one.union(two) }
        if let one = cpus, let two = other.cpus { result.cpus = one.union(two) }
        result.deviceMemory = greater(\.deviceMemory)
        result.userMemory = greater(\.userMemory)
        result.deviceTasks = greater(\.deviceTasks)
        result.cpuWeight = greater(\.cpuWeight)
        result.cpuQuota = greater(\.cpuQuota)
        result.ioBandwidth = greater(\.ioBandwidth)
        result.ioOperations = greater(\.ioOperations)
        result.zeroCopy = zeroCopy || other.zeroCopy
        result.otherFileSystem = otherFileSystem || other.otherFileSystem
        result.networkFileSystem = networkFileSystem || other.networkFileSystem
        result.connections = [connections, other.connections].map { $0 ?? AccessLimits.usualConnections }.max()
        result.anyServer = anyServer || other.anyServer
        result.trustedContent = trustedContent || other.trustedContent
        return result
    }
}

extension UInt64 {
    func saturatingMultiply(_ other: UInt64) -> UInt64 {
        let (product, overflow) = multipliedReportingOverflow(by: other)
        return overflow ? .max : product
    }

    func saturatingAdd(_ other: UInt64) -> UInt64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? .max : sum
    }
}
