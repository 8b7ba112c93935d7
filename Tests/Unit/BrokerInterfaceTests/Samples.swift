import Testing
import BrokerInterface
import Varlink

/// One structure of the interface: where the description declares it, and how Swift reads and writes it.
struct Sample: CustomTestStringConvertible, Sendable {
    enum Place: Sendable {
        case type(String)
        case input(String)
        case output(String)
        case error(String)
    }

    var place: Place
    /// With every field.
    var full: JSON
    /// Reads and writes again.
    var pass: @Sendable (JSON, UnknownFields) throws(InterfaceError) -> JSON

    var testDescription: String { "\(place)" }

    static let device = Device {
        ($0.id, $0.generation, $0.owner, $0.target) = (3, 17, 1000, "loop")
        ($0.state, $0.reason, $0.since) = (.recovering, "the worker died", 1_790_000_001)
        ($0.node, $0.link) = ("/dev/ublkb3", "/dev/ubdb3")
        ($0.sizeBytes, $0.blockSize, $0.physicalBlockSize) = (1 << 30, 512, 4096)
        ($0.queues, $0.depth, $0.maxIOBytes) = (2, 128, 524288)
        ($0.readOnly, $0.buffered, $0.trustedContent) = (true, true, true)
        ($0.recovery, $0.ioTimeout) = (.queue, 7)
        ($0.deaths, $0.lastDeath) = (2, "killed by SIGSEGV")
        ($0.file, $0.offset, $0.partition, $0.set) = ("1.img", 4096, 2, 4711)
        $0.name = "data"
        ($0.workerPid, $0.workerUid) = (4711, 1_879_048_192)
        ($0.workerVersion, $0.workerOutdated) = ("0.1.0", true)
        ($0.cpus, $0.allowedCPUs) = (CPUList("0-1,3"), CPUList("0-3"))
        $0.controlGroup = "/system.slice/ubd-workers.service/user-1000/device-3-11"
        $0.groupLimits = groupLimits
        ($0.waitsSince, $0.keeper, $0.cipher) = (1_790_000_002, 4712, "TLS1.3 CHACHA20-POLY1305")
        $0.created = 1_790_000_000
    }
    static let groupLimits: GroupLimits = {
        var limits = GroupLimits()
        limits.deviceMemory = 1 << 30
        limits.deviceTasks = 128
        limits.userMemory = 2 << 30
        limits.cpuWeight = 50
        limits.cpuQuota = 200
        limits.ioBandwidth = 100 << 20
        limits.ioOperations = 1000
        return limits
    }()
    static let notice = Notice(code: "read-only", message: "1.img is not writable, so the device is read-only")
    static let limits = Limits {
        ($0.maxDevices, $0.maxQueues, $0.maxDepth) = (8, 4, 256)
        ($0.maxMemoryBytes, $0.memoryDiskBytes, $0.maxSizeBytes) = (1 << 30, 1 << 29, 1 << 40)
        $0.targets = ["null", "loop"]
        $0.zeroCopy = true
        ($0.maxStarts, $0.penalty) = (600, 60)
        ($0.ids, $0.cpus, $0.groups) = ("100-199", "0-3", groupLimits)
        ($0.connections, $0.anyServer) = (4, true)
    }
    static let info = InfoReply {
        ($0.version, $0.kernel, $0.featureBits) = ("0.1.0", "6.12.95", 0x1FE)
        ($0.features, $0.ignoredFeatures, $0.targets) = (["user-recovery"], ["zoned"], ["null", "loop"])
        ($0.devices, $0.devicesOfCaller, $0.workerUidsFree) = (5, 2, 4091)
        ($0.workerGroup, $0.socket) = ("ubd-worker", "/run/ubd/io.ubd.Broker")
        $0.controlGroup = "/system.slice/ubd-workers.service"
        $0.controllers = ["cpu", "io", "memory", "pids"]
        $0.descriptorStore = 4096
        $0.descriptorStoreProblem = "systemd before 257 offers none"
        $0.started = 1_790_000_000
        ($0.permitted, $0.rule, $0.limits) = (true, "allow group ubd", limits)
    }
    static let add = AddRequest(
        target: "loop", id: 3, queues: 2, depth: 64, maxIOBytes: 4096, readOnly: true, mode: "zero-copy",
        recovery: "queue", ioTimeout: 20, cpus: "0-1,3",
        fileName: "1.img", shared: true, name: "data", partition: 2, set: 4711,
        options: [OptionValue("offset", "512"), OptionValue("buffered", "true")])

    static let counts = Counts(
        read: OperationCount(requests: 10, bytes: 40960, errors: 1), write: OperationCount(requests: 2, bytes: 1024),
        flush: OperationCount(requests: 1), discard: OperationCount(requests: 3, bytes: 1 << 20),
        writeZeroes: OperationCount(requests: 4, bytes: 4096), inFlight: 5, wakeUps: 9, batchSizes: [7, 0, 1],
        latency: [0, 0, 12])
    static let change = DeviceChange {
        ($0.id, $0.generation, $0.state) = (3, 17, .recovering)
        ($0.reason, $0.since, $0.waits, $0.unanswered) = ("it waits", 1_790_000_001, true, 2)
    }
    static let stats = DeviceStats(
        id: 3, generation: 17, since: 1_790_000_000, total: counts, queues: [counts, Counts()])

    static let structures: [Sample] = [
        Sample(place: .type("OperationCount"), full: counts.read.json) { (json, unknown) throws(InterfaceError) in
            try OperationCount(json: json, unknown: unknown).json
        },
        Sample(place: .type("Counts"), full: counts.json) { (json, unknown) throws(InterfaceError) in
            try Counts(json: json, unknown: unknown).json
        },
        Sample(place: .type("DeviceStats"), full: stats.json) { (json, unknown) throws(InterfaceError) in
            try DeviceStats(json: json, unknown: unknown).json
        },
        Sample(
            place: .input("Stats"), full: StatsRequest(id: 3, queues: true).json
        ) { (json, _) throws(InterfaceError) in try StatsRequest(parameters: json).json },
        Sample(
            place: .output("Stats"), full: StatsReply(latencyBounds: [250, 500], devices: [stats]).json
        ) { (json, unknown) throws(InterfaceError) in try StatsReply(parameters: json, unknown: unknown).json },
        Sample(place: .type("Device"), full: device.json) { (json, unknown) throws(InterfaceError) in
            try Device(json: json, unknown: unknown).json
        },
        Sample(place: .type("Notice"), full: notice.json) { (json, unknown) throws(InterfaceError) in
            try Notice(json: json, unknown: unknown).json
        },
        Sample(place: .type("Limits"), full: limits.json) { (json, unknown) throws(InterfaceError) in
            try Limits(json: json, unknown: unknown).json
        },
        Sample(place: .type("GroupLimits"), full: groupLimits.json) { (json, unknown) throws(InterfaceError) in
            try GroupLimits(json: json, unknown: unknown).json
        },
        Sample(place: .input("Add"), full: add.json) { (json, _) throws(InterfaceError) in
            try AddRequest(parameters: json).json
        },
        Sample(
            place: .input("Delete"), full: DeleteRequest(id: 3, generation: 17, force: true).json
        ) { (json, _) throws(InterfaceError) in try DeleteRequest(parameters: json).json },
        Sample(
            place: .input("Upgrade"), full: UpgradeRequest(id: 3, generation: 17).json
        ) { (json, _) throws(InterfaceError) in try UpgradeRequest(parameters: json).json },
        Sample(
            place: .input("Resize"), full: ResizeRequest(id: 3, generation: 17, sizeBytes: 1 << 30, shrink: true).json
        ) { (json, _) throws(InterfaceError) in try ResizeRequest(parameters: json).json },
        Sample(
            place: .output("Resize"), full: ResizeReply(previousBytes: 1 << 20, device: device).json
        ) { (json, unknown) throws(InterfaceError) in try ResizeReply(parameters: json, unknown: unknown).json },
        Sample(
            place: .output("Upgrade"), full: UpgradeReply(upgraded: true, device: device).json
        ) { (json, unknown) throws(InterfaceError) in try UpgradeReply(parameters: json, unknown: unknown).json },
        Sample(
            place: .input("Recover"),
            full: RecoverRequest(id: 3, generation: 17, options: [OptionValue("size", "512")]).json
        ) { (json, _) throws(InterfaceError) in try RecoverRequest(parameters: json).json },
        Sample(place: .input("List"), full: ListRequest(id: 3).json) { (json, _) throws(InterfaceError) in
            try ListRequest(parameters: json).json
        },
        Sample(
            place: .output("List"), full: ListReply(devices: [device, device]).json
        ) { (json, unknown) throws(InterfaceError) in try ListReply(parameters: json, unknown: unknown).json },
        Sample(
            place: .input("Monitor"), full: MonitorRequest(ids: [3, 4], keep: false).json
        ) { (json, _) throws(InterfaceError) in try MonitorRequest(parameters: json).json },
        Sample(place: .type("Change"), full: change.json) { (json, unknown) throws(InterfaceError) in
            try DeviceChange(json: json, unknown: unknown).json
        },
        Sample(
            place: .output("Monitor"), full: MonitorReply(change: change).json
        ) { (json, unknown) throws(InterfaceError) in try MonitorReply(parameters: json, unknown: unknown).json },
        Sample(place: .output("Info"), full: info.json) { (json, unknown) throws(InterfaceError) in
            try InfoReply(parameters: json, unknown: unknown).json
        },
    ]

    static let errors: [InterfaceError] = [
        .notPermitted(message: "m", remedy: "r", rule: "allow group ubd"),
        .quotaReached(message: "m", remedy: "r", limit: "max-starts", value: 8, again: 3),
        .limitReached(message: "m", remedy: "r", limit: "user-connections", value: 16),
        .invalidOption(message: "m", remedy: "r", option: "size", value: "0"),
        .badFile(message: "m", remedy: "r", index: 1), .idInUse(message: "m", remedy: "r", id: 3),
        .noSuchDevice(message: "m", remedy: "r", id: 3), .busy(message: "m", remedy: "r", id: 3, holder: "/mnt"),
        .kernelUnsupported(message: "m", remedy: "r", feature: "batch-io"),
        .failed(message: "m", remedy: "r", step: "ADD_DEV", errno: 28),
    ]

    static let serviceErrors: [InterfaceError] = [
        .interfaceNotFound(interface: "a.b"), .methodNotFound(method: "a.b.C"), .methodNotImplemented(method: "a.b.C"),
        .invalidParameter(parameter: "id"), .permissionDenied, .expectedMore, .expectedUpgrade,
    ]

    /// All structures, the errors among them.
    static let all: [Sample] =
        structures
        + errors.map { error in
            let name = error.name
            return Sample(
                place: .error(String(name.split(separator: ".").last!)), full: error.parameters
            ) { (json, unknown) throws(InterfaceError) in
                guard let read = try InterfaceError(name: name, parameters: json, unknown: unknown) else {
                    return "unknown error"
                }
                return read.parameters
            }
        }
}
