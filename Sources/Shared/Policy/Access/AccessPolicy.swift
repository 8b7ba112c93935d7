import Numbers

/// The requesting user according to the kernel (SO_PEERCRED, SO_PEERGROUPS), never according to a message.
public struct AccessPeer: Sendable, Equatable {
    public let uid: UInt32
    /// The primary and supplementary groups.
    public let groups: [UInt32]

    public init(uid: UInt32, groups: [UInt32]) {
        self.uid = uid
        self.groups = groups
    }
}

/// The limits and rights of a line. A limit that is not written does not apply; a right that is not written is not
/// granted.
public struct AccessLimits: Sendable, Equatable {
    /// `mode=ro`.
    public var readOnlyOnly = false
    /// Devices of one user at a time.
    public var maxDevices: UInt64?
    /// Queues of one device.
    public var maxQueues: UInt64?
    /// Requests in flight per queue.
    public var maxDepth: UInt64?
    /// Bytes of I/O buffers of all devices of one user: queues * depth * largest request for each.
    public var maxMemoryBytes: UInt64?
    /// Bytes of all memory disks of one user; nil: none.
    public var memoryDisks: UInt64?
    /// Size of one device in bytes.
    public var maxSizeBytes: UInt64?
    /// Bytes of one request.
    public var maxIOBytes: UInt64?
    /// Seconds that a device may have as I/O timeout; nil: any.
    public var ioTimeout: ClosedRange<UInt64>?
    /// Limits a user's requests that start workers (adds, upgrades, recoveries): this many at once, and this many a
    /// minute.
    public var maxStarts: UInt64?
    /// Seconds without starts for a user whose worker broke its sandbox, for the first time within a day. Each further
    /// time doubles it.
    public var penalty: UInt64?
    /// Device numbers that a request may name; nil: any that no line reserves.
    public var ids: NumberList?
    /// Processors on which the worker may run; nil: any.
    public var cpus: NumberList?
    /// Bytes in the control group of one device: buffers, program, page cache, and the kernel's memory for it.
    public var deviceMemory: UInt64?
    /// Bytes in the control group of all devices of one user.
    public var userMemory: UInt64?
    /// Tasks of one device: its worker's threads and the kernel's helper threads for its rings.
    public var deviceTasks: UInt64?
    /// The processor weight of all devices of one user relative to other users; 100 is the default.
    public var cpuWeight: UInt64?
    /// The limit for all devices of one user together, in percent of one processor.
    public var cpuQuota: UInt64?
    /// Bytes per second that all devices of one user together may read from each disk, and the same for writes.
    public var ioBandwidth: UInt64?
    /// The same for operations per second.
    public var ioOperations: UInt64?
    /// Whether the worker may use zero copy: the kernel then trusts it not to report bytes that it did not fill.
    public var zeroCopy = false
    /// Whether the backing file may be on a file system that is not known to be local (FUSE, overlay, …).
    public var otherFileSystem = false
    /// Whether the backing file may be on a network file system.
    public var networkFileSystem = false
    /// The maximum number of connections of a device whose target has connections; nil: `usualConnections`.
    public var connections: UInt64?
    /// Whether a device's connections may lead to other hosts (`nbd=any`).
    public var anyServer = false
    /// Whether root's programs (udev's probes, LVM, udisks) may read the content of such a device, as that of other
    /// disks.
    public var trustedContent = false

    public init() {}

    /// What holds where a line has no `connections=`.
    public static let usualConnections: UInt64 = 4
}

/// One `allow` or `deny` line.
public struct AccessRule: Sendable, Equatable {
    /// The users that a line is for.
    public enum Identity: Sendable, Equatable {
        case everybody
        case uid(UInt32)
        case gid(UInt32)
        /// A user or group that this host does not have; matches nobody.
        case unknown
    }

    public let isAllow: Bool
    /// One or two; all must match.
    public let identities: [Identity]
    /// Nil: every target.
    public let targets: [String]?
    /// Used only on an `allow` line.
    public let limits: AccessLimits
    public let location: PolicyLocation
    /// The line as written, without comment and outer blanks, for the log.
    public let text: String

    func fits(_ peer: AccessPeer) -> Bool {
        identities.allSatisfy { identity in
            switch identity {
            case .everybody: true
            case .uid(let uid): uid == peer.uid
            case .gid(let gid): peer.groups.contains(gid)
            case .unknown: false
            }
        }
    }

    /// The groups that the line names.
    fileprivate var groups: [UInt32] {
        identities.compactMap { identity in
            if case .gid(let gid) = identity { gid } else { nil }
        }
    }

    func fits(target: String) -> Bool { targets?.contains(target) ?? true }

    /// Whether this rule matches every request that `other` matches.
    func covers(_ other: AccessRule) -> Bool {
        let isForThem =
            !identities.contains(.unknown)
            && identities.allSatisfy { $0 == .everybody || other.identities.contains($0) }
        guard let targets else { return isForThem }
        return isForThem && other.targets.map { $0.allSatisfy(targets.contains) } ?? false
    }
}

/// Who may have which devices: `/etc/ubd/access.policy`. The first line that matches peer and target decides; when none
/// matches, the request is refused. The file that ships explains the format to administrators.
public struct AccessPolicy: Sendable, Equatable {
    public let rules: [AccessRule]
    /// All numbers in `ids=` of any line: only users of such a line may have them.
    public let reserved: NumberList
    /// All groups that any line names; the broker ignores a user's other groups.
    public let groups: Set<UInt32>
    /// Rules that never take effect, with the reason; `ubd-broker --check-config` prints them.
    public let warnings: [PolicyError]

    /// ublk numbers its devices below 2^20 (UBLK_MINORS, drivers/block/ublk_drv.c).
    public static let greatestID = (1 << 20) - 1
    /// The kernel's limit for x86_64 (CONFIG_NR_CPUS_RANGE_END).
    public static let greatestCPU = 8191

    /// Returns the number of a user or group; nil when the host has none of that name.
    public typealias NameResolver = (_ name: String) -> UInt32?

    /// Parses the whole file. `targets` are the existing targets, to detect misspelt ones. The caller's functions
    /// resolve all names once, here; the module itself uses no name service.
    public init(
        parsing bytes: [UInt8], file: String, targets: [String], user: NameResolver, group: NameResolver
    ) throws(PolicyError) {
        var rules: [AccessRule] = []
        var warnings: [PolicyError] = []
        for line in try PolicySource.lines(of: bytes, file: file) where !line.hasNoCode {
            var parser = AccessLineParser(line, targets: targets)
            let rule = try parser.rule(user: user, group: group)
            warnings += parser.warnings
            if let earlier = rules.first(where: { $0.covers(rule) }) {
                warnings.append(
                    PolicyError(rule.location, "never reached: line \(earlier.location.line) decides before it"))
            }
            guard rules.count < PolicySource.maximumRules else {
                throw PolicyError(rule.location, "more than \(PolicySource.maximumRules) rules")
            }
            rules.append(rule)
        }
        self.rules = rules
        reserved = NumberList(rules.flatMap { $0.limits.ids?.ranges ?? [] })
        groups = Set(rules.flatMap(\.groups))
        self.warnings = warnings
    }

    /// The line that decides for this peer and target; nil when none matches, which means refusal.
    public func rule(for peer: AccessPeer, target: String) -> AccessRule? {
        rules.first { $0.fits(target: target) && $0.fits(peer) }
    }

    /// The sets from which a device under this line gets a number automatically, in order of preference: numbers that
    /// no line reserves, then the line's own.
    public func automaticIDs(for rule: AccessRule) -> [NumberList] {
        [reserved.gaps(in: 0...AccessPolicy.greatestID)] + (rule.limits.ids.map { [$0] } ?? [])
    }
}
