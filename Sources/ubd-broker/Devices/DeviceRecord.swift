import BrokerInterface
import Glibc
import SystemCalls
import Varlink
import WorkerProtocol

/// What must be known of a device after the broker itself died: written before each kernel call whose effect it names.
/// One file a device, below the run folder; replaced in one step, so it is never half written.
///
/// A later version may add members, which this one does not see, and this one reads what an earlier one did not write as
/// not known. The number grows only with what an earlier broker would misunderstand; then it leaves the device alone.
struct DeviceRecord: Equatable {
    static let version: Int64 = 1

    /// How far the device is; undone by the next broker unless it is live.
    enum Step: String {
        /// ADD_DEV was or is about to be sent.
        case adding
        /// START_DEV was or is about to be sent: the worker may be stopped.
        case starting
        case live
        /// START_USER_RECOVERY was or is about to be sent; the worker may be stopped.
        case recovering
        /// QUIESCE_DEV was or is about to be sent, or the worker killed: it is to be replaced, though all may look live.
        case upgrading
        case deleting
    }

    struct Worker: Equatable {
        var pid: Int32
        var startTime: UInt64
        var uid: UInt32
    }

    /// The broker's ends of a device's sockets, by inode.
    struct Sockets: Equatable {
        var control: UInt64
        var parking: UInt64
        /// The worker's end of the control socket; an earlier version did not write it down.
        var worker: UInt64?
    }

    var step: Step
    var device: Device
    var worker: Worker?
    var sockets: Sockets?
    /// What its workers are told.
    var launch: LaunchMessage?
    /// The file behind it.
    var file = FileIdentity.none
    /// START_USER_RECOVERY was sent for the present death, or was about to be.
    var recoveryStarted = false
    /// And the kernel's answer was heard, so that replacements may have been tried: before 6.16 it must not be sent again.
    var recoveryAnswered = false
    /// Bytes of I/O buffers, for the owner's quota.
    var memoryBytes: UInt64

    private var json: JSON {
        .record([
            ("version", .integer(DeviceRecord.version)), ("step", .string(step.rawValue)), ("device", device.json),
            ("memoryBytes", .integer(Int64(clamping: memoryBytes))), ("recoveryStarted", .bool(recoveryStarted)),
            ("recoveryAnswered", .bool(recoveryAnswered)),
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
        // An earlier broker that did not tell them apart may have tried replacements.
        recoveryAnswered = json["recoveryAnswered"].map { $0 == .bool(true) } ?? recoveryStarted
        if case .string(let text)? = json["launch"] {
            // Of another version: without it the device can't have another worker, but it serves on.
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

    /// Whether a device can have these numbers. The broker calculates with them, and a sum that overflows ends it: a record
    /// beyond these bounds is a damaged one.
    private static func isPossible(_ device: Device, memoryBytes: Int64) -> Bool {
        AddPlan.queueCounts.contains(Int64(device.queues)) && AddPlan.depths.contains(Int64(device.depth))
            && (1...AddPlan.ioSizes.upperBound).contains(Int64(device.maxIOBytes))
            && device.ioTimeout.map(AddPlan.ioTimeouts.contains) ?? true
            && (0...Int(Int32.max)).contains(device.deaths) && (0...AddPlan.mostBufferBytes).contains(memoryBytes)
    }

    init(step: Step, device: Device, worker: Worker?, memoryBytes: UInt64) {
        self.step = step
        self.device = device
        self.worker = worker
        self.memoryBytes = memoryBytes
    }

    /// Reads a record; nil when it is damaged or of another version.
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

/// The folder of the records, and the folder of what the udev rule reads.
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
            // What a broker was writing when it was killed; the file that it was to replace still counts.
            for name in listFolder(path) where name.hasSuffix(".new") { unlink("\(path)/\(name)") }
        }
    }

    /// The numbers of which something lies here: a record or what udev reads, whole or half written, readable or not.
    func takenIDs() throws(SystemError) -> Set<UInt32> {
        let names = try namesInFolder(folder) + namesInFolder(udevFolder)
        return Set(names.compactMap { UInt32($0.hasSuffix(".new") ? String($0.dropLast(4)) : $0) })
    }

    /// The first record of a device. EEXIST when there is one of that number, which nobody could read then.
    func create(_ record: DeviceRecord) throws(SystemError) {
        try createFile("\(folder)/\(record.device.id)", with: record.bytes, mode: 0o600)
    }

    func write(_ record: DeviceRecord) throws(SystemError) {
        try replaceFile("\(folder)/\(record.device.id)", with: record.bytes, mode: 0o600)
    }

    /// What the udev rule reads when the node appears, so before it does.
    /// `link` is nil when something else has that name: udev would take it for its own, and remove it with the device.
    func writeUdev(_ device: Device, link: String?) throws(SystemError) {
        var text = "UBD_OWNER=\(device.owner)\n" + (link.map { "UBD_LINK=\($0)\n" } ?? "")
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

    /// Of a device that was never added: what udev reads was not written for it.
    func removeRecord(_ id: UInt32) {
        unlink("\(folder)/\(id)")
    }

    /// The names of all files there: numbers of devices, unless somebody else put them there.
    var names: [String] { listFolder(folder) }

    /// All records, and the names of the files that are none.
    func load() -> (records: [DeviceRecord], damaged: [String]) {
        var records: [DeviceRecord] = []
        var damaged: [String] = []
        for name in listFolder(folder).sorted() {
            let path = "\(folder)/\(name)"
            guard let id = UInt32(name), let bytes = try? readFile(path), let record = DeviceRecord(bytes: bytes),
                record.device.id == id
            else {
                damaged.append(path)
                continue
            }
            records.append(record)
        }
        return (records, damaged)
    }
}
