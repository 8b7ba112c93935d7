import BrokerInterface
import Glibc
import SystemCalls
import Varlink
import WorkerProtocol

/// The record of a device, for the next broker if this one dies. It is written before each kernel call whose effect it
/// names. Each device has a file in the run folder, which is replaced atomically.
///
/// A later version may add members, which this version ignores; members that an earlier version did not write are
/// unknown. The version number grows only with a change that an earlier broker would misunderstand; that broker then
/// leaves the device alone.
struct DeviceRecord: Equatable {
    static let version: Int64 = 1

    /// The device's progress. The next broker undoes a device before `live`.
    enum Step: String {
        /// ADD_DEV was sent or is about to be.
        case adding
        /// START_DEV was sent or is about to be; the worker may be stopped.
        case starting
        case live
        /// START_USER_RECOVERY was sent or is about to be; the worker may be stopped.
        case recovering
        /// QUIESCE_DEV was sent or is about to be, or the worker was killed: it must be replaced, even if the device
        /// looks live.
        case upgrading
        case deleting
    }

    struct Worker: Equatable {
        var pid: Int32
        var startTime: UInt64
        var uid: UInt32
    }

    /// The inodes of the broker's ends of a device's sockets.
    struct Sockets: Equatable {
        var control: UInt64
        var parking: UInt64
        /// The worker's end of the control socket; nil in records of earlier versions.
        var worker: UInt64?
    }

    var step: Step
    var device: Device
    var worker: Worker?
    var sockets: Sockets?
    /// The inode of the socket with its files, whether or not it has a worker: systemd may have kept it.
    var parked: UInt64?
    /// The launch message of its workers.
    var launch: LaunchMessage?
    /// The backing file.
    var file = FileIdentity.none
    /// Bytes: see `ManagedDevice.pendingSize`.
    var pendingSize: UInt64?
    /// See `ManagedDevice.releasesBytes`.
    var releasesBytes = false
    /// START_USER_RECOVERY was sent for the present death, or is about to be.
    var recoveryStarted = false
    /// The kernel has also answered, so replacements may have been started: before 6.16 the command must not be sent
    /// again.
    var recoveryAnswered = false
    /// Monotonic nanoseconds: since when it waits for fresh inputs. The folder of records does not outlive the host's clock.
    var inputsLost: UInt64?
    /// Bytes of I/O buffers, for the owner's quota.
    var memoryBytes: UInt64

    private var json: JSON {
        .record([
            ("version", .integer(DeviceRecord.version)), ("step", .string(step.rawValue)), ("device", device.json),
            ("memoryBytes", .integer(Int64(clamping: memoryBytes))), ("recoveryStarted", .bool(recoveryStarted)),
            ("recoveryAnswered", .bool(recoveryAnswered)),
            ("pendingSize", pendingSize.map { .integer(Int64(clamping: $0)) }),
            ("releasesBytes", releasesBytes ? .bool(true) : nil),
            ("inputsLost", inputsLost.map { .integer(Int64(clamping: $0)) }),
            ("parked", parked.map { .integer(Int64(clamping: $0)) }),
            ("launch", launch.map { .string(DeviceRecord.hexadecimal($0.encoded())) }),
            (
                "file",
                file == .none
                    ? nil
                    : .record([
                        ("device", .integer(Int64(bitPattern: file.device))),
                        ("inode", .integer(Int64(bitPattern: file.inode))),
                        ("born", .integer(Int64(bitPattern: file.born))),
                    ])
            ),
            (
                "sockets",
                sockets.map { sockets in
                    .record([
                        ("control", .integer(Int64(clamping: sockets.control))),
                        ("parking", .integer(Int64(clamping: sockets.parking))),
                        ("worker", sockets.worker.map { .integer(Int64(clamping: $0)) }),
                    ])
                }
            ),
            (
                "worker",
                worker.map { worker in
                    .record([
                        ("pid", .integer(Int64(worker.pid))),
                        ("startTime", .integer(Int64(clamping: worker.startTime))),
                        ("uid", .integer(Int64(worker.uid))),
                    ])
                }
            ),
        ])
    }

    private init?(json: JSON) {
        guard case .integer(DeviceRecord.version)? = json["version"], case .string(let text)? = json["step"],
            let step = Step(rawValue: text),
            let device = json["device"].flatMap({ try? Device(json: $0, unknown: .ignore) }),
            case .integer(let bytes)? = json["memoryBytes"], DeviceRecord.isPossible(device, memoryBytes: bytes)
        else { return nil }
        self.step = step
        self.device = device
        memoryBytes = UInt64(bytes)
        recoveryStarted = json["recoveryStarted"] == .bool(true)
        // An earlier version did not distinguish the two, and may have started replacements.
        recoveryAnswered = json["recoveryAnswered"].map { $0 == .bool(true) } ?? recoveryStarted
        if case .integer(let bytes)? = json["pendingSize"], bytes > 0 { pendingSize = UInt64(bytes) }
        releasesBytes = json["releasesBytes"] == .bool(true)
        if case .integer(let time)? = json["inputsLost"] { inputsLost = UInt64(exactly: time) }
        if case .integer(let inode)? = json["parked"] { parked = UInt64(exactly: inode) }
        if case .string(let text)? = json["launch"] {
            // nil for a message of another version: the device serves on, but cannot get another worker.
            launch = DeviceRecord.bytes(text).flatMap(LaunchMessage.init(decoding:))
        }
        if case .integer(let device)? = json["file"]?["device"], case .integer(let inode)? = json["file"]?["inode"],
            case .integer(let born)? = json["file"]?["born"]
        {
            file = FileIdentity(
                device: UInt64(bitPattern: device), inode: UInt64(bitPattern: inode), born: UInt64(bitPattern: born))
        }
        if let sockets = json["sockets"] {
            guard case .integer(let control)? = sockets["control"], case .integer(let parking)? = sockets["parking"],
                let control = UInt64(exactly: control), let parking = UInt64(exactly: parking)
            else { return nil }
            self.sockets = Sockets(control: control, parking: parking)
            if case .integer(let worker)? = sockets["worker"] { self.sockets?.worker = UInt64(exactly: worker) }
        }
        guard let worker = json["worker"] else { return }
        guard case .integer(let pid)? = worker["pid"], case .integer(let start)? = worker["startTime"],
            case .integer(let uid)? = worker["uid"], let pid = Int32(exactly: pid), pid > 1,
            let start = UInt64(exactly: start), let uid = UInt32(exactly: uid)
        else { return nil }
        self.worker = Worker(pid: pid, startTime: start, uid: uid)
    }

    /// Whether a device can have these numbers. The broker computes with them, and an overflow would end it, so a
    /// record with other numbers counts as damaged.
    private static func isPossible(_ device: Device, memoryBytes: Int64) -> Bool {
        AddPlan.queueCounts.contains(Int64(device.queues)) && AddPlan.depths.contains(Int64(device.depth))
            && (1...AddPlan.ioSizes.upperBound).contains(Int64(device.maxIOBytes))
            && (device.name.map(DeviceName.isValid) ?? true)
            && device.ioTimeout.map(AddPlan.ioTimeouts.contains) ?? true
            && (0...Int(Int32.max)).contains(device.deaths) && (0...AddPlan.mostBufferBytes).contains(memoryBytes)
    }

    init(step: Step, device: Device, worker: Worker?, memoryBytes: UInt64) {
        self.step = step
        self.device = device
        self.worker = worker
        self.memoryBytes = memoryBytes
    }

    /// Decodes a record; nil when it is damaged or of another version.
    init?(bytes: [UInt8]) {
        guard let json = try? JSON(parsing: bytes, limits: .reply) else { return nil }
        self.init(json: json)
    }

    var bytes: [UInt8] { json.bytes }

    private static func hexadecimal(_ bytes: [UInt8]) -> String {
        bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }

    private static func bytes(_ hexadecimal: String) -> [UInt8]? {
        let digits = hexadecimal.utf8.compactMap { UInt8(String(UnicodeScalar($0)), radix: 16) }
        guard digits.count == hexadecimal.utf8.count, digits.count.isMultiple(of: 2) else { return nil }
        return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
    }
}

/// The folders of the records and of the udev rule's input.
struct RecordStore {
    let folder: String
    let udevFolder: String

    init(runFolder: String) {
        folder = runFolder + "/state"
        udevFolder = runFolder + "/udev"
    }

    func prepare() throws(SystemError) {
        for (path, mode) in [(folder, mode_t(0o700)), (udevFolder, mode_t(0o755))] {
            if mkdir(path, mode) != 0, errno != EEXIST { throw SystemError("mkdir \(path)", errno) }
            try call("chmod \(path)") { chmod(path, mode) }
            // Files that a killed broker left incomplete; the files that they should replace are still valid.
            for name in listFolder(path) where name.hasSuffix(".new") { unlink("\(path)/\(name)") }
        }
    }

    /// The device numbers of all files here: records and udev records, complete or not, readable or not.
    func takenIDs() throws(SystemError) -> Set<UInt32> {
        let names = try namesInFolder(folder) + namesInFolder(udevFolder)
        return Set(names.compactMap { UInt32($0.hasSuffix(".new") ? String($0.dropLast(4)) : $0) })
    }

    /// Creates a device's first record. Throws EEXIST when the number has one already, which must be unreadable.
    func create(_ record: DeviceRecord) throws(SystemError) {
        try createFile("\(folder)/\(record.device.id)", with: record.bytes, mode: 0o600)
    }

    func write(_ record: DeviceRecord) throws(SystemError) {
        try replaceFile("\(folder)/\(record.device.id)", with: record.bytes, mode: 0o600)
    }

    /// Writes the input of the udev rule, before the node appears. `link` is nil when another file has that name: udev
    /// would treat that file as its own and remove it with the device.
    func writeUdev(_ device: Device, link: String?) throws(SystemError) {
        var text = "UBD_OWNER=\(device.owner)\n" + (link.map { "UBD_LINK=\($0)\n" } ?? "")
        if let name = device.name { text += "UBD_NAME=\(DeviceName.link(name, owner: device.owner))\n" }
        if device.trustedContent == true { text += "UBD_TRUSTED_CONTENT=1\n" }
        try replaceFile("\(udevFolder)/\(device.id)", with: Array(text.utf8), mode: 0o600)
    }

    func removeUdev(_ id: UInt32) {
        unlink("\(udevFolder)/\(id)")
    }

    func remove(_ id: UInt32) {
        removeUdev(id)
        removeRecord(id)
    }

    /// For a device that was never added and has no udev record.
    func removeRecord(_ id: UInt32) {
        unlink("\(folder)/\(id)")
    }

    /// The names of all files in the folder: device numbers, unless somebody else put them there.
    func names() throws(SystemError) -> [String] { try namesInFolder(folder) }

    /// All records, and the paths of files that are no valid record.
    ///
    /// - Throws: when nobody can tell which records there are, or what they say.
    func load() throws(SystemError) -> (records: [DeviceRecord], damaged: [String]) {
        var records: [DeviceRecord] = []
        var damaged: [String] = []
        for name in try names().sorted() {
            let path = "\(folder)/\(name)"
            if let record = try record(name, path) { records.append(record) } else { damaged.append(path) }
        }
        return (records, damaged)
    }

    /// nil when the file is no valid record.
    private func record(_ name: String, _ path: String) throws(SystemError) -> DeviceRecord? {
        let bytes: [UInt8]
        do { bytes = try readFile(path) } catch {
            if error.isShortage { throw error }
            return nil
        }
        guard let record = DeviceRecord(bytes: bytes), name == "\(record.device.id)" else { return nil }
        return record
    }
}
