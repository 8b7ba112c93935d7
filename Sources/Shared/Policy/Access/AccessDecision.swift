import Numbers

/// A device that somebody asks for.
public struct AccessRequest: Sendable, Equatable {
    public var target: String
    public var readOnly: Bool
    public var queues: UInt64
    /// Requests in flight per queue.
    public var depth: UInt64
    /// Bytes of the largest request.
    public var maxIOBytes: UInt64
    /// Bytes of the device; nil while it is not known (a file tells it only once the worker has opened the target).
    public var sizeBytes: UInt64?
    /// Seconds; nil: whatever is the default, brought into the line's bounds.
    public var ioTimeout: UInt64?
    /// The number that the device is to have; nil: any.
    public var id: UInt64?
    /// Where its queues are to run; nil: wherever it may.
    public var cpus: NumberList?

    public init(
        target: String, readOnly: Bool, queues: UInt64, depth: UInt64, maxIOBytes: UInt64, sizeBytes: UInt64?,
        ioTimeout: UInt64? = nil, id: UInt64? = nil, cpus: NumberList? = nil
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
    }

    /// Bytes of I/O buffers that the device pins: queues * depth * largest request, or the greatest number when that
    /// is greater.
    public var memoryBytes: UInt64 { queues.saturatingMultiply(depth).saturatingMultiply(maxIOBytes) }

    /// Bytes that a device needs at least beside its buffers, in the accounts of its control group: its worker's program, stacks
    /// and rings, and as much for one that an upgrade tries out. Both together use less than half of it.
    public static let otherBytes: UInt64 = 64 << 20

    /// Tasks that its worker may have: the main one; for each queue a thread, and the kernel's helpers of its ring, 8 and 2
    /// (SealedRing). Twice, since an upgrade tries out another worker beside the one that serves.
    public var tasks: UInt64 { queues.saturatingMultiply(11).saturatingAdd(1).saturatingMultiply(2) }
}

/// What a user has already, this request not counted.
public struct AccessUsage: Sendable, Equatable {
    public var devices: UInt64
    /// The sum of `AccessRequest.memoryBytes`.
    public var memoryBytes: UInt64

    public init(devices: UInt64, memoryBytes: UInt64) {
        self.devices = devices
        self.memoryBytes = memoryBytes
    }

    /// Bytes that all devices may lock when one more is added.
    func groupBytes(with request: AccessRequest) -> UInt64 {
        devices.saturatingAdd(1).saturatingMultiply(AccessRequest.otherBytes).saturatingAdd(memoryBytes)
            .saturatingAdd(request.memoryBytes)
    }
}

/// Why a device is refused.
public enum AccessRefusal: Sendable, Equatable {
    /// No line fits. `candidates` are the lines that allow the target to others: what the user may ask to join.
    case noRule(candidates: [AccessRule])
    /// The first line that fits says `deny`.
    case denied(AccessRule)
    /// The line gives read-only devices.
    case readOnlyOnly(AccessRule)
    /// More than the line allows. `limit` is the key as written, `max-depth`; `wanted` would be the new value, in the
    /// unit of the limit, and for `max-devices` and `max-memory` counts what the user has.
    case overLimit(AccessRule, limit: String, maximum: UInt64, wanted: UInt64)
    /// Outside of the line's `io-timeout`, in seconds.
    case ioTimeout(AccessRule, bounds: ClosedRange<UInt64>, wanted: UInt64)
    /// A number that is not among the line's `ids`.
    case id(AccessRule, allowed: NumberList, wanted: UInt64)
    /// The deciding line has no `ids`, and `holder` is the first line that names this number.
    case reservedID(AccessRule, holder: AccessRule, wanted: UInt64)
    /// A processor, the first of those asked for, that is not among the line's `cpus`.
    case cpus(AccessRule, allowed: NumberList, wanted: UInt64)
}

public enum AccessDecision: Sendable, Equatable {
    case allowed(AccessRule)
    case refused(AccessRefusal)
}

/// What a peer may have at most, over all targets: an overview for `ubd info`. `AccessPolicy.decide` is what counts.
public struct AccessOverview: Sendable, Equatable {
    /// The targets that the peer may use, each with the line that says so.
    public let rules: [(target: String, rule: AccessRule)]
    /// The widest limit of each kind among the rules.
    public let limits: AccessLimits

    public var targets: [String] { rules.map(\.target) }

    public static func == (one: AccessOverview, other: AccessOverview) -> Bool {
        one.limits == other.limits && one.rules.elementsEqual(other.rules, by: ==)
    }
}

extension AccessPolicy {
    /// Decides about one device. The limits of the deciding line are compared with the request and with what the user
    /// has; no later line is tried when one is exceeded.
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
            ("max-size", rule.limits.maxSizeBytes, request.sizeBytes ?? 0),
            // A device that these could never let start is refused, instead of dying again and again.
            (
                "device-memory", rule.limits.deviceMemory, request.memoryBytes.saturatingAdd(AccessRequest.otherBytes)
            ),
            ("user-memory", rule.limits.userMemory, usage.groupBytes(with: request)),
            ("device-tasks", rule.limits.deviceTasks, request.tasks),
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

    /// Device and processor numbers that the line does not give.
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

    /// What the peer may have among `targets`; nil when that is nothing.
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
    /// The less strict of both, limit by limit.
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
