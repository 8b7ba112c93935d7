import BrokerInterface
import SystemCalls
import Targets
import Varlink

/// `ubd add`: opens the file with the user's rights and asks the broker for a device on it.
struct AddCommand: PlainCommand {
    var target: String
    var number: Int64?
    var ofTarget: TargetArguments
    var queues: Int64
    /// nil: the broker's default, which depends on the queues.
    var depth: Int64?
    var maxIOSize: ByteCount?
    var readOnly: Bool
    var recovery: String?
    var ioTimeout: Int64?
    var mode: String?
    var cpus: String?
    var shared: Bool
    /// The number of a partition, or "all".
    var partition: String?
    /// How the server of an nbd device is reached.
    var dial: DialOptions
    /// How the volume of a crypt device is opened.
    var key: KeyOptions
    /// Where an overlay keeps what is written.
    var layer = LayerOptions()
    /// The server behind -- is started again when it has ended.
    var restartCommand: Bool
    /// The server behind --; empty: none.
    var server: [String]
    /// What its link is called.
    var name: String?
    /// The name by which it comes back; empty: the usual one; nil: it does not.
    var enable: String?
    var asJSON: Bool

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        try enable == nil ? performAdd(environment) : performEnabled(environment)
    }

    func performAdd(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        try maxIOSize?.checked("--max-io-size")
        let request = try self.request
        let plan: AddPlan
        do { plan = try AddPlan(request) } catch { throw CommandFailure(error) }
        try refuseLayers(plan.target)
        if let input = plan.target.inputs.first, input.role == .sockets {
            try refuseKeys(plan.target)
            return try performConnected(plan, input, environment)
        }
        if plan.target.takesSecret { return try performEncrypted(plan, environment) }
        try refuseKeys(plan.target)
        try refuseDialling(plan.target)
        if plan.target.takesControl { return try performFaulty(plan, environment) }
        if plan.target.hasBlockMap { return try performLayered(plan, request, environment) }
        let client = BrokerClient(environment: environment)
        if let (path, input) = try file(for: plan.target) {
            if let partition { return try performPartitions(partition, of: path, input, request, plan, client) }
            let backing = try open(path, input, plan.options)
            try Interruption.untilTold(environment) { (environment) throws(CommandFailure) in
                let client = BrokerClient(environment: environment)
                let (device, notices) = try add(backing, path, request, plan, client)
                show(device, notices, environment)
            }
        } else {
            if let partition { throw Self.noParts(plan.target, partition) }
            let memory = plan.target.isInMemory ? try MemoryDisk.make(plan) : nil
            try Interruption.untilTold(environment) { (environment) throws(CommandFailure) in
                let files = memory?.numbers ?? []
                let (device, notices) = try BrokerClient(environment: environment).add(request, files: files)
                show(device, notices, environment)
            }
        }
        return .success
    }

    func open(
        _ path: String, _ input: TargetInput, _ options: DeviceOptions
    ) throws(CommandFailure) -> BackingFile {
        try BackingFile.open(
            path, readOnly: readOnly || input.isReadOnly, options: options, hasTwin: input.hasTwin, shared: shared)
    }

    /// Adds a device on an open file; the notices are all that its user should know. `made`: files that come before it.
    func add(
        _ backing: borrowing BackingFile, _ path: String, label: String? = nil, with made: [Int32] = [],
        _ request: AddRequest, _ plan: AddPlan, _ client: BrokerClient
    ) throws(CommandFailure) -> (Device, [Notice]) {
        var request = request
        // A base is only read, whatever the device is.
        if backing.readOnly, !plan.target.hasBlockMap { request.readOnly = true }
        request.fileName = label ?? MountMark.absent(Self.label(path))
        var told = backing.notices
        let smallest = ContentSectors.smallestBlock(of: backing.numbers[0])
        var content: ContentSectors?
        // Do not wait for a file that does not answer. But an unknown sector size is not 512.
        do throws(SystemError) {
            content = try ContentSectors.look(at: path, offset: plan.options.offset, seconds: Self.lookSeconds)
        } catch {
            if plan.target.hasBlockSize, plan.options.blockSize == nil { told.append(Self.unseen(path, error)) }
        }
        if plan.target.hasBlockSize, let other = defaultBlockSize(plan.options, content, smallest) {
            request.options.append(OptionValue("block-size", String(other)))
            told.append(Self.followed(path, other))
        }
        let (device, notices) = try client.add(request, files: made + backing.numbers)
        told += content?.notice(path, blockSize: UInt64(device.blockSize), smallest: smallest).map { [$0] } ?? []
        // The broker has the same notice for a file without direct I/O.
        told += notices.filter { notice in !told.contains { $0.code == notice.code } }
        return (device, told)
    }

    /// `ubd add -t loop -f PATH`; nil when the path cannot be an option's value.
    static func loop(_ path: String) -> AddCommand? {
        PlainLine.command(["add", "-t", "loop", "-f", path]) as? AddCommand
    }

    /// Adds the device, and says nothing.
    func attach(_ client: BrokerClient) throws(CommandFailure) -> Device {
        let request = try self.request
        let plan: AddPlan
        do { plan = try AddPlan(request) } catch { throw CommandFailure(error) }
        guard let (path, input) = try file(for: plan.target) else { return try client.add(request, files: []).0 }
        return try add(open(path, input, plan.options), path, request, plan, client).0
    }

    func show(_ device: Device, _ notices: [Notice], _ environment: CommandEnvironment) {
        let console = environment.console
        let notices = notices + Self.nodeNotices(device, environment) + enabled(device, environment)
        for notice in notices { console.error("ubd: note: " + notice.message.printable) }
        if asJSON {
            console.out(AddReply.added(device, notices: notices).json.indentedText)
        } else {
            Self.print(device, console)
        }
    }

    static func print(_ device: Device, _ console: any Console) {
        console.out((device.link ?? device.node).printable)
        console.aside("ubd: " + summary(device))
    }

    static func nodeNotices(_ device: Device, _ environment: CommandEnvironment) -> [Notice] {
        guard environment.host.kind(of: device.node, followsLinks: true) == nil else { return [] }
        return [
            Notice(
                code: "node",
                message:
                    "\(device.node) is on the host, and not in the /dev of this container: give the container the host's /dev, "
                    + "or this device")
        ]
    }

    /// The device in one line, with the values that ubd or the broker chose.
    static func summary(_ device: Device) -> String {
        let file =
            (device.file.map { " \($0.printable)" } ?? "") + (device.partition.map { ", partition \($0)" } ?? "")
        let access = (device.readOnly ? ", read-only" : "") + (device.buffered ? ", buffered" : "")
        let queues = device.queues == 1 ? "1 queue" : "\(device.queues) queues"
        return "\(device.target)\(file), \(ByteSize.text(device.sizeBytes)) in blocks of \(device.blockSize)\(access), "
            + "mode \(device.mode.rawValue), \(queues) of \(device.depth) requests, recovery \(device.recovery.rawValue)"
    }

    /// The request to the broker, before the file is opened.
    var request: AddRequest {
        get throws(CommandFailure) {
            let options = try ofTarget.options
            var queues = queues
            // Each connection has a queue: who says how many connections need not say it again.
            if queues == AddPlan.defaultQueues,
                let count = options.first(where: { $0.name == "connections" }).flatMap({ Int64($0.value) })
            {
                queues = count
            }
            return AddRequest(
                target: target, id: number, queues: queues, depth: depth,
                maxIOBytes: maxIOSize.map { Int64($0.bytes) }, readOnly: readOnly ? true : nil, mode: mode,
                recovery: recovery, ioTimeout: ioTimeout, cpus: cpus, shared: shared ? true : nil, name: name,
                options: options)
        }
    }

    /// The file of a target, and its role; nil when the target takes none. So far there is at most one that its user
    /// names (a test checks the manifests).
    func file(for target: TargetManifest) throws(CommandFailure) -> (String, TargetInput)? {
        let input = target.givenInputs.first
        if let (name, path) = ofTarget.inputs.first(where: { $0.name != input?.name }) {
            throw CommandFailure(
                .usage, "Usage", "target \(target.name) takes no \(name), so '\(path)' would not be used",
                remedy: "leave --\(name) out, or use another target")
        }
        guard let input else {
            guard shared else { return nil }
            throw CommandFailure(
                .usage, "Usage", "target \(target.name) takes no file, so there is nothing to share",
                remedy: "leave --shared out, or use another target")
        }
        guard let path = ofTarget.inputs.first?.value else {
            throw CommandFailure(
                .usage, "Usage", "target \(target.name) needs a \(input.name)", remedy: "name it with --\(input.name)")
        }
        guard !path.isEmpty else {
            throw CommandFailure(
                .usage, "Usage", "--\(input.name) can not be ''",
                remedy: "name the file or block device behind the device")
        }
        return (path, input)
    }

    /// Seconds that reading the content of a file may take.
    static let lookSeconds = 3

    /// The block size in bytes when none was given and the content needs another than 512; nil otherwise. A disk keeps
    /// its own.
    private func defaultBlockSize(_ options: DeviceOptions, _ content: ContentSectors?, _ smallest: UInt64) -> UInt64? {
        options.blockSize == nil && smallest == 512 ? content?.otherThanUsual : nil
    }

    /// The note for a device whose block size follows the content.
    private static func followed(_ path: String, _ blockSize: UInt64) -> Notice {
        Notice(
            code: "block-size",
            message:
                "\(path) has \(ContentSectors.table(blockSize).text), so the device has blocks of \(blockSize) bytes; "
                + "--block-size 512 would make others")
    }

    /// The note for a device whose content could not be read.
    private static func unseen(_ path: String, _ error: SystemError) -> Notice {
        Notice(
            code: "block-size",
            message:
                "the sector size that \(path) is made for is not known (\(error)); a disk of 4096-byte sectors needs "
                + "--block-size 4096")
    }

    /// The path as a label that the interface accepts: its end when it is long, without characters that steer a
    /// terminal.
    static func label(_ path: String) -> String {
        var scalars = path.printable.unicodeScalars
        while String(scalars).utf8.count > AddPlan.longestFileName { scalars.removeFirst() }
        return String(scalars)
    }
}
