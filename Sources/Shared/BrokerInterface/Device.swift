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

/// A device in the replies of List and Add. `members` explains each of its properties.
public struct Device: Equatable, Sendable {
    public var id: UInt32 = 0
    public var generation: UInt64 = 0
    public var owner: UInt32 = 0
    public var target = ""
    public var state = DeviceState.adding
    public var reason: String?
    public var node = ""
    public var link: String?
    public var sizeBytes: UInt64 = 0
    public var blockSize: UInt32 = 0
    public var physicalBlockSize: UInt32 = 0
    public var readOnly = false
    public var queues: UInt16 = 0
    public var depth: UInt16 = 0
    public var maxIOBytes: UInt32 = 0
    public var mode = DataMode.copy
    public var buffered = false
    public var recovery = RecoveryMode.default
    public var ioTimeout: Int64?
    public var trustedContent: Bool?
    public var deaths = 0
    public var lastDeath: String?
    public var since: Int64 = 0
    public var file: String?
    public var name: String?
    public var offset: Int64?
    public var partition: Int64?
    public var set: Int64?
    public var cipher: String?
    public var workerPid: Int32?
    public var workerUid: UInt32?
    public var workerVersion: String?
    public var workerOutdated: Bool?
    public var cpus: CPUList?
    public var allowedCPUs: CPUList?
    public var controlGroup: String?
    public var groupLimits: GroupLimits?
    public var waitsSince: Int64?
    public var keeper: Int32?
    public var created: Int64 = 0

    public init() {}
}

extension Device {
    /// The link that udev makes of its name; nil when it has none.
    public var namedLink: String? { name.map { "\(DeviceName.folder)/\(DeviceName.link($0, owner: owner))" } }
}

extension Device: Structure {
    public mutating func members<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try identityMembers(&coder)
        try diskMembers(&coder)
        try lifeMembers(&coder)
        try workerMembers(&coder)
    }

    private mutating func identityMembers<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("id", &id, "N of /dev/ublkbN.")
        try coder.member("generation", &generation, "Distinguishes the device from a later one with the same id.")
        try coder.member("owner", &owner, "The owner's uid.")
        try coder.member("target", &target, "Name of the target: \(TargetList.names.joined(separator: ", ")).")
        try coder.member(
            "state", &state, "adding, starting, live, recovering, deleting, unmanaged, stuck or failed.")
        try coder.member("reason", &reason, "Why it is not live, when it is not.")
        try coder.member("node", &node, "The block device, as in /dev/ublkb0.")
        try coder.member("link", &link, "The link, as in /dev/ubdb0; null when another file has that name.")
    }

    private mutating func diskMembers<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("sizeBytes", &sizeBytes)
        try coder.member("blockSize", &blockSize)
        try coder.member("physicalBlockSize", &physicalBlockSize)
        try coder.member("readOnly", &readOnly)
        try coder.member("queues", &queues, "Hardware queues.")
        try coder.member("depth", &depth, "Tags per queue.")
        try coder.member("maxIOBytes", &maxIOBytes, "Maximum bytes of one request.")
        try coder.member(
            "mode", &mode, "How data and requests move: copy, zero-copy, batch or batch-zero-copy.")
        try coder.member("buffered", &buffered, "The backing file is used through the page cache.")
    }

    private mutating func lifeMembers<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("recovery", &recovery, "What happens when the worker dies: reissue, queue, fail or none.")
        try coder.member(
            "ioTimeout", &ioTimeout,
            "Seconds without progress after which the worker counts as hung; null: the broker's default (older records)."
        )
        try coder.member(
            "trustedContent", &trustedContent,
            """
            The access policy lets root's programs (udev's probes, LVM, udisks) read its content; null: it does not.
            """)
        try coder.member("deaths", &deaths, "The number of its workers that have died.")
        try coder.member("lastDeath", &lastDeath, "How its last worker died; null when none has.")
        try coder.member("since", &since, "The beginning of its state, in seconds since 1970.")
        try coder.member("file", &file, "The client's name for its file: a label that nobody opens.")
        try coder.member(
            "name", &name, "Its owner's name for it; with udev the link /dev/disk/by-ubd/NAME, of users UID:NAME.")
        try coder.member(
            "offset", &offset, "The device's offset in its file in bytes; null: 0.")
        try coder.member(
            "partition", &partition, "The client's number for the part of its file that this is: a label; null: none.")
        try coder.member(
            "set", &set, "The same number in devices of one owner that were added together; null: it was added alone.")
        try coder.member(
            "cipher", &cipher,
            "How the connections to its server are encrypted, as in TLS1.3 CHACHA20-POLY1305; null: they are not.")
    }

    private mutating func workerMembers<Coder: MemberCoder>(_ coder: inout Coder) throws(Coder.Failure) {
        try coder.member("workerPid", &workerPid, "The worker's pid in the broker's pid namespace.")
        try coder.member("workerUid", &workerUid)
        try coder.member(
            "workerVersion", &workerVersion, "The version that the worker reports; null when it reports none.")
        try coder.member(
            "workerOutdated", &workerOutdated,
            "Upgrade would replace the worker, since its program is not that of new workers; null when unknown.")
        try coder.member(
            "cpus", &cpus,
            """
            The processors on which the queues' threads run, as in 0-1,3; null: those from which the kernel sends each queue
            its requests.
            """)
        try coder.member(
            "allowedCPUs", &allowedCPUs,
            "The processors to which the access policy confines the worker; null: all.")
        try coder.member(
            "controlGroup", &controlGroup,
            "The worker's control group as in /proc/PID/cgroup; null: it has none of its own.")
        try coder.member("groupLimits", &groupLimits, "The limits of that group and of its owner's group.")
        try coder.member(
            "waitsSince", &waitsSince,
            """
            Since when its requests wait for a file or server that does not answer, in seconds since 1970; null: they do
            not wait.
            """)
        try coder.member(
            "keeper", &keeper,
            "The pid of its owner's program that brings it fresh inputs (Monitor with keep); null: there is none.")
        try coder.member("created", &created, "The time of Add, in seconds since 1970.")
    }
}
