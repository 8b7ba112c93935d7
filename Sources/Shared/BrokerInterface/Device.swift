import Targets
import Varlink

/// The state of a device (docs/design.md §3, "States").
public enum DeviceState: String, Sendable, CaseIterable {
    /// The broker is creating it; there is no block device yet.
    case adding
    /// The worker is sealed; the kernel is starting the block device.
    case starting
    /// It serves.
    case live
    /// The worker died; requests wait for its replacement.
    case recovering
    /// It is being taken down.
    case deleting
    /// It serves, but this broker could not take its worker over: no automatic recovery when the worker dies.
    case unmanaged
    /// Its worker cannot be killed, or the kernel does not delete it.
    case stuck
    /// Its worker died and is not replaced: requests fail until the device is deleted.
    case failed
}

/// A device in the replies of List and Add.
public struct Device: Equatable, Sendable {
    /// N of /dev/ublkbN.
    public var id: UInt32
    /// Distinguishes this device from a later one with the same id.
    public var generation: UInt64
    /// The owner's uid.
    public var owner: UInt32
    /// Name of the target.
    public var target: String
    public var state: DeviceState
    /// Why it is not live; nil when it is live.
    public var reason: String?
    /// The block device: "/dev/ublkb0".
    public var node: String
    /// The link for users, "/dev/ubdb0"; nil when another file has that name.
    public var link: String?
    /// Bytes.
    public var sizeBytes: UInt64
    /// Logical block size in bytes.
    public var blockSize: UInt32
    /// Physical block size in bytes.
    public var physicalBlockSize: UInt32
    public var readOnly: Bool
    /// Hardware queues.
    public var queues: UInt16
    /// Tags per queue.
    public var depth: UInt16
    /// Maximum bytes of one request.
    public var maxIOBytes: UInt32
    /// How data and requests move.
    public var mode: DataMode
    /// The backing file is used through the page cache.
    public var buffered: Bool
    /// What happens when its worker dies.
    public var recovery: RecoveryMode
    /// Seconds without progress after which the worker counts as hung; nil: the broker's default (older records).
    public var ioTimeout: Int64?
    /// Root's programs (udev's probes, LVM, udisks) may read its content, as that of other disks.
    public var trustedContent: Bool?
    /// The number of its workers that have died.
    public var deaths: Int
    /// How its last worker died; nil when none has.
    public var lastDeath: String?
    /// The beginning of its state, in seconds since 1970.
    public var since: Int64
    /// The client's name for its file: a label that nobody opens.
    public var file: String?
    /// The device's offset in its file in bytes; nil: 0.
    public var offset: Int64?
    /// The worker's pid in the broker's pid namespace.
    public var workerPid: Int32?
    public var workerUid: UInt32?
    /// The version that the worker reports; nil when it reports none.
    public var workerVersion: String?
    /// An upgrade would replace the worker, since its program is not that of new workers; nil when unknown.
    public var workerOutdated: Bool?
    /// The processors on which the queues' threads run; nil: those from which the kernel sends each queue its requests.
    public var cpus: CPUList?
    /// The processors to which the access policy confines the worker; nil: all.
    public var allowedCPUs: CPUList?
    /// The worker's control group as in /proc/PID/cgroup; nil: it has none of its own.
    public var controlGroup: String?
    /// The limits of that group and of its owner's group.
    public var groupLimits: GroupLimits?
    /// The time of Add, in seconds since 1970.
    public var created: Int64

    public init(
        id: UInt32, generation: UInt64, owner: UInt32, target: String, state: DeviceState, reason: String? = nil,
        node: String, link: String?, sizeBytes: UInt64, blockSize: UInt32, physicalBlockSize: UInt32, readOnly: Bool,
        queues: UInt16, depth: UInt16, maxIOBytes: UInt32, mode: DataMode, buffered: Bool,
        recovery: RecoveryMode = .default, ioTimeout: Int64? = nil, trustedContent: Bool? = nil,
        deaths: Int = 0, lastDeath: String? = nil, since: Int64 = 0, file: String? = nil, offset: Int64? = nil,
        workerPid: Int32? = nil, workerUid: UInt32? = nil, workerVersion: String? = nil, workerOutdated: Bool? = nil,
        cpus: CPUList? = nil, allowedCPUs: CPUList? = nil, controlGroup: String? = nil,
        groupLimits: GroupLimits? = nil, created: Int64
    ) {
        self.id = id
        self.generation = generation
        self.owner = owner
        self.target = target
        self.state = state
        self.reason = reason
        self.node = node
        self.link = link
        self.sizeBytes = sizeBytes
        self.blockSize = blockSize
        self.physicalBlockSize = physicalBlockSize
        self.readOnly = readOnly
        self.queues = queues
        self.depth = depth
        self.maxIOBytes = maxIOBytes
        self.mode = mode
        self.buffered = buffered
        self.recovery = recovery
        self.ioTimeout = ioTimeout
        self.trustedContent = trustedContent
        self.deaths = deaths
        self.lastDeath = lastDeath
        self.since = since
        self.file = file
        self.offset = offset
        self.workerPid = workerPid
        self.workerUid = workerUid
        self.workerVersion = workerVersion
        self.workerOutdated = workerOutdated
        self.cpus = cpus
        self.allowedCPUs = allowedCPUs
        self.controlGroup = controlGroup
        self.groupLimits = groupLimits
        self.created = created
    }

    /// Decodes a device.
    ///
    /// - Throws: `InterfaceError.invalidParameter` with the member's name, below `path`.
    public init(
        json: JSON, path: String = "", unknown: UnknownFields = .refuse
    ) throws(InterfaceError) {
        var fields = try FieldReader(json, path: path, unknown: unknown)
        id = try fields.integer("id")
        generation = try fields.integer("generation")
        owner = try fields.integer("owner")
        target = try fields.string("target")
        guard let state = DeviceState(rawValue: try fields.string("state")) else {
            throw .invalidParameter(parameter: fields.fullName("state"))
        }
        self.state = state
        reason = try fields.optionalString("reason")
        node = try fields.string("node")
        link = try fields.optionalString("link")
        sizeBytes = try fields.integer("sizeBytes")
        blockSize = try fields.integer("blockSize")
        physicalBlockSize = try fields.integer("physicalBlockSize")
        readOnly = try fields.flag("readOnly")
        queues = try fields.integer("queues")
        depth = try fields.integer("depth")
        maxIOBytes = try fields.integer("maxIOBytes")
        guard let mode = DataMode(rawValue: try fields.string("mode")) else {
            throw .invalidParameter(parameter: fields.fullName("mode"))
        }
        self.mode = mode
        buffered = try fields.flag("buffered")
        guard let recovery = RecoveryMode(rawValue: try fields.string("recovery")) else {
            throw .invalidParameter(parameter: fields.fullName("recovery"))
        }
        self.recovery = recovery
        ioTimeout = try fields.optionalInteger("ioTimeout")
        trustedContent = try fields.optionalFlag("trustedContent")
        deaths = try fields.integer("deaths")
        lastDeath = try fields.optionalString("lastDeath")
        since = try fields.integer("since")
        file = try fields.optionalString("file")
        offset = try fields.optionalInteger("offset")
        workerPid = try fields.optionalInteger("workerPid")
        workerUid = try fields.optionalInteger("workerUid")
        workerVersion = try fields.optionalString("workerVersion")
        workerOutdated = try fields.optionalFlag("workerOutdated")
        cpus = try Device.cpuList(&fields, "cpus")
        allowedCPUs = try Device.cpuList(&fields, "allowedCPUs")
        controlGroup = try fields.optionalString("controlGroup")
        groupLimits = nil
        if let value = fields.value("groupLimits") {
            groupLimits = try GroupLimits(json: value, path: fields.fullName("groupLimits"), unknown: unknown)
        }
        created = try fields.integer("created")
        try fields.finish()
    }

    private static func cpuList(_ fields: inout FieldReader, _ name: String) throws(InterfaceError) -> CPUList? {
        guard let text = try fields.optionalString(name) else { return nil }
        guard let cpus = CPUList(text) else { throw .invalidParameter(parameter: fields.fullName(name)) }
        return cpus
    }

    public var json: JSON {
        .record([
            ("id", .integer(clamping: id)), ("generation", .integer(clamping: generation)),
            ("owner", .integer(clamping: owner)), ("target", .string(target)), ("state", .string(state.rawValue)),
            ("reason", reason.map(JSON.string)), ("node", .string(node)), ("link", link.map(JSON.string)),
            ("sizeBytes", .integer(clamping: sizeBytes)), ("blockSize", .integer(clamping: blockSize)),
            ("physicalBlockSize", .integer(clamping: physicalBlockSize)), ("readOnly", .bool(readOnly)),
            ("queues", .integer(clamping: queues)), ("depth", .integer(clamping: depth)),
            ("maxIOBytes", .integer(clamping: maxIOBytes)), ("mode", .string(mode.rawValue)),
            ("buffered", .bool(buffered)),
            ("recovery", .string(recovery.rawValue)), ("ioTimeout", ioTimeout.map(JSON.integer)),
            ("trustedContent", trustedContent.map(JSON.bool)), ("deaths", .integer(clamping: deaths)),
            ("lastDeath", lastDeath.map(JSON.string)), ("since", .integer(since)),
            ("file", file.map(JSON.string)), ("offset", offset.map(JSON.integer)),
            ("workerPid", workerPid.map { .integer(clamping: $0) }),
            ("workerUid", workerUid.map { .integer(clamping: $0) }),
            ("workerVersion", workerVersion.map(JSON.string)), ("workerOutdated", workerOutdated.map(JSON.bool)),
            ("cpus", cpus.map { .string($0.text) }), ("allowedCPUs", allowedCPUs.map { .string($0.text) }),
            ("controlGroup", controlGroup.map(JSON.string)), ("groupLimits", groupLimits?.json),
            ("created", .integer(created)),
        ])
    }
}
