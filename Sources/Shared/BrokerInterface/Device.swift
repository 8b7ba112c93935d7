import Targets
import Varlink

/// Where a device is in its life (docs/design.md §3, "States").
public enum DeviceState: String, Sendable, CaseIterable {
    /// The broker is creating it; there is no block device yet.
    case adding
    /// The worker is sealed, the kernel is starting the block device.
    case starting
    /// It serves.
    case live
    /// The worker died; I/O waits for the next one.
    case recovering
    /// It is being taken down.
    case deleting
    /// It serves, but this broker could not take it over from an earlier one: no recovery until it is deleted.
    case unmanaged
    /// Its worker can't be killed: waiting for a file that does not answer.
    case stuck
    /// Its worker died and there is no other: requests fail until it is deleted.
    case failed
}

/// One device, as List and Add tell of it.
public struct Device: Equatable, Sendable {
    /// N of /dev/ublkbN.
    public var id: UInt32
    /// Tells this device from a later one with the same id.
    public var generation: UInt64
    /// Uid of the user who owns it.
    public var owner: UInt32
    /// Name of the target.
    public var target: String
    public var state: DeviceState
    /// Why it is not live; nil when it is.
    public var reason: String?
    /// The block device: "/dev/ublkb0".
    public var node: String
    /// The name for people, "/dev/ubdb0"; nil when something else has that name.
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
    /// Requests at once in each queue.
    public var depth: UInt16
    /// Most bytes of one request.
    public var maxIOBytes: UInt32
    /// How data and requests move.
    public var mode: DataMode
    /// The backing file goes through the page cache.
    public var buffered: Bool
    /// What happens when its worker dies.
    public var recovery: RecoveryMode
    /// Seconds without progress after which its worker counts as hung; nil: the broker's default (older records).
    public var ioTimeout: Int64?
    /// Root's own programs may look at its content (udev's probes, LVM, udisks), as they do at other disks.
    public var trustedContent: Bool?
    /// How many workers of this device have died.
    public var deaths: Int
    /// How the last of them died; nil when none has.
    public var lastDeath: String?
    /// Since when it is in its state, in seconds since 1970.
    public var since: Int64
    /// The name that the client gave to its file: a label that nobody opens.
    public var file: String?
    /// Bytes into its file where the device begins; nil: at the beginning.
    public var offset: Int64?
    /// Pid of the worker as the broker sees it.
    public var workerPid: Int32?
    public var workerUid: UInt32?
    /// The version that its worker says it is; nil when there is none.
    public var workerVersion: String?
    /// Its worker is of another program than new ones are, so that an upgrade would replace it; nil when that is not known.
    public var workerOutdated: Bool?
    /// Where the threads of its queues run; nil: where the kernel gives each queue its requests from.
    public var cpus: CPUList?
    /// The processors that the access policy gave its worker, which nothing of it leaves; nil: all.
    public var allowedCPUs: CPUList?
    /// The control group of its worker, as in /proc/PID/cgroup; nil: it has none of its own.
    public var controlGroup: String?
    /// What that group and its owner's keep.
    public var groupLimits: GroupLimits?
    /// When it was added, in seconds since 1970.
    public var created: Int64

    /// A device of these properties.
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

    /// Reads a device.
    ///
    /// - Throws: `InterfaceError.invalidParameter` that names the member, below `path`.
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

    /// The device on the wire.
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
