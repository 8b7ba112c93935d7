import Numbers

/// Who asks: as the kernel told it (SO_PEERCRED, SO_PEERGROUPS), never as a message told it.
public struct AccessPeer: Sendable, Equatable {
    public let uid: UInt32
    /// The primary group and the supplementary ones.
    public let groups: [UInt32]

    public init(uid: UInt32, groups: [UInt32]) {
        self.uid = uid
        self.groups = groups
    }
}

/// What a rule allows at most. A limit that is not written does not exist; a right that is not written is not given.
public struct AccessLimits: Sendable, Equatable {
    /// `mode=ro`.
    public var readOnlyOnly = false
    /// Devices of one user at one time.
    public var maxDevices: UInt64?
    /// Queues of one device.
    public var maxQueues: UInt64?
    /// Requests in flight per queue.
    public var maxDepth: UInt64?
    /// Bytes of I/O buffers over all devices of one user: queues * depth * largest I/O of each.
    public var maxMemoryBytes: UInt64?
    /// Bytes of one device.
    public var maxSizeBytes: UInt64?
    /// Bytes of one request.
    public var maxIOBytes: UInt64?
    /// Seconds that a device may be given as its I/O timeout; nil: any.
    public var ioTimeout: ClosedRange<UInt64>?
    /// A user's requests that start workers (adds, upgrades, recoveries): so many at once, and then so many a minute.
    public var maxStarts: UInt64?
    /// Seconds for which a user's requests start no worker after one of the user's broke its sandbox, for the first time
    /// within a day; twice as long each further time.
    public var penalty: UInt64?
    /// Device numbers that may be asked for; nil: any that no line names.
    public var ids: NumberList?
    /// Processors on which the device's worker runs; nil: any.
    public var cpus: NumberList?
    /// Bytes that the control group of one device may use: buffers, program, page cache, and what the kernel needs for it.
    public var deviceMemory: UInt64?
    /// Bytes of all devices of one user together.
    public var userMemory: UInt64?
    /// Tasks of one device: threads of its worker, and those that the kernel makes for its rings.
    public var deviceTasks: UInt64?
    /// Share of the processors of all devices of one user together, beside other users: 100 is the usual one.
    public var cpuWeight: UInt64?
    /// Percent of one processor that all devices of one user together may use.
    public var cpuQuota: UInt64?
    /// Bytes a second that all devices of one user together may read, and as many that they may write, of each disk.
    public var ioBandwidth: UInt64?
    /// The same for operations.
    public var ioOperations: UInt64?
    /// Whether the worker may use zero copy: the kernel then trusts it not to claim bytes that it did not fill.
    public var zeroCopy = false
    /// Whether the backing file may lie on a file system that is not known to be local (FUSE, overlay, …).
    public var otherFileSystem = false
    /// Whether the backing file may lie on a network file system.
    public var networkFileSystem = false
    /// Whether root's own programs (udev's probes, LVM, udisks) may look at the content of such a device, as at other disks.
    public var trustedContent = false

    public init() {}
}

/// One `allow` or `deny` line.
public struct AccessRule: Sendable, Equatable {
    /// Whom a line is for.
    public enum Identity: Sendable, Equatable {
        case everybody
        case uid(UInt32)
        case gid(UInt32)
        /// A user or group that this host does not have: fits nobody.
        case unknown
    }

    public let isAllow: Bool
    /// All must fit; one or two.
    public let identities: [Identity]
    /// Nil: every target.
    public let targets: [String]?
    /// Of an `allow` line.
    public let limits: AccessLimits
    public let location: PolicyLocation
    /// The line as written, without comment and outer blanks: for the log.
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

    /// The groups for which it is.
    fileprivate var groups: [UInt32] {
        identities.compactMap { identity in
            if case .gid(let gid) = identity { gid } else { nil }
        }
    }

    func fits(target: String) -> Bool { targets?.contains(target) ?? true }

    /// Whether every request that fits `other` fits this rule too.
    func covers(_ other: AccessRule) -> Bool {
        let isForThem =
            !identities.contains(.unknown)
            && identities.allSatisfy { $0 == .everybody || other.identities.contains($0) }
        guard let targets else { return isForThem }
        return isForThem && other.targets.map { $0.allSatisfy(targets.contains) } ?? false
    }
}

/// Who may have which devices: `/etc/ubd/access.policy`. The first line that fits peer and target decides; without one
/// the answer is no. The file that ships explains the format to administrators.
public struct AccessPolicy: Sendable, Equatable {
    public let rules: [AccessRule]
    /// The numbers that some line names in its `ids=`: only those of a line that names a number may have it.
    public let reserved: NumberList
    /// The groups that lines name: of all that a user is in, no other one matters.
    public let groups: Set<UInt32>
    /// Rules that will never take effect, and why; shown by `ubd-broker --check-config`.
    public let warnings: [PolicyError]

    /// ublk numbers its devices below 2^20 (UBLK_MINORS, drivers/block/ublk_drv.c).
    public static let greatestID = (1 << 20) - 1
    /// The kernel's own limit for x86_64 (CONFIG_NR_CPUS_RANGE_END).
    public static let greatestCPU = 8191

    /// Finds the number of a user or group; nil when the host has none of that name.
    public typealias NameResolver = (_ name: String) -> UInt32?

    /// Parses the whole file. `targets` are the targets that exist, for spotting misspelt ones. Names are resolved now,
    /// once, by the caller's functions: the module itself asks no name service.
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

    /// The line that decides about this peer and target; nil when none fits, which means no.
    public func rule(for peer: AccessPeer, target: String) -> AccessRule? {
        rules.first { $0.fits(target: target) && $0.fits(peer) }
    }

    /// The numbers from which a device of that line gets one by itself, in this order of preference: those that no line
    /// names, then the line's own.
    public func automaticIDs(for rule: AccessRule) -> [NumberList] {
        [reserved.gaps(in: 0...AccessPolicy.greatestID)] + (rule.limits.ids.map { [$0] } ?? [])
    }
}
