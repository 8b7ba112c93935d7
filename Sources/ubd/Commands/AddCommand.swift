import ArgumentParser
import BrokerInterface
import SystemCalls
import Targets
import Varlink

/// `ubd add`: opens the file with the user's rights and asks the broker for a device on it.
struct AddCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "add",
        abstract: "Add a device and print its path.",
        discussion: """
            TARGETS
            \(targetHelp)

            EXAMPLES
              ubd add -t loop -f disk.img                      read-only if the file is not writable
              ubd add -t loop -f disk.img --offset 1M --size 512M --read-only
                ubd add -t null -n 7 -q 4 -d 256                 /dev/ubdb7, for measurements
                dev=$(ubd add -t loop -f disk.img) && mkfs.ext4 "$dev"

              You open the file, not the broker: a file that you may not read or write stays closed.
              Ctrl-C undoes an add that has not finished. Notes go to stderr as 'ubd: note: …'.
              On a terminal, a line there says what the device is: size, mode, queues.
            """)

    @Option(
        name: [.short, .long],
        help: ArgumentHelp("What serves the device: \(TargetList.names.joined(separator: ", ")).", valueName: "name"),
        completion: .list(TargetList.names))
    var target: String

    @Option(
        name: [.customShort("n"), .long],
        help: ArgumentHelp("N of /dev/ubdbN. (default: the first free one)", valueName: "id"))
    var number: Int64?

    // Inputs and options of the targets, from their manifests.
    @OptionGroup var ofTarget: TargetArguments

    @Option(
        name: [.short, .long], help: ArgumentHelp("Hardware queues, at most one for each CPU.", valueName: "count"))
    var queues: Int64 = AddPlan.defaultQueues

    @Option(name: [.short, .long], help: ArgumentHelp("Requests in flight in each queue.", valueName: "count"))
    var depth: Int64 = AddPlan.defaultDepth

    // Named here: ArgumentParser would make --max-iosize from the property's name.
    @Option(
        name: .customLong("max-io-size"),
        help: ArgumentHelp("Largest request, a multiple of 4K. (default: 512K)", valueName: "bytes"))
    var maxIOSize: ByteCount?

    @Flag(help: "Make a read-only device.")
    var readOnly = false

    @Option(
        help: ArgumentHelp(
            "What happens when the device's worker dies: reissue, queue, fail or none. (default: reissue)",
            discussion: RecoveryMode.allCases.map { "\($0.rawValue): \($0.summary)" }.joined(separator: "\n"),
            valueName: "mode"),
        completion: .list(RecoveryMode.allCases.map(\.rawValue)))
    var recovery: String?

    @Option(
        name: .customLong("io-timeout"),
        help: ArgumentHelp(
            "A worker that makes no progress for this time is replaced, 2 to 3600. (default: the broker's, 30)",
            valueName: "seconds"))
    var ioTimeout: Int64?

    @Option(
        help: ArgumentHelp(
            "How data and requests move: copy, zero-copy, batch, batch-zero-copy or auto. (default: auto)",
            discussion: DataMode.allCases.map { "\($0.rawValue): \($0.summary)" }.joined(separator: "\n")
                + "\nauto: the best mode that kernel, target and access policy allow", valueName: "mode"),
        completion: .list(DataMode.allCases.map(\.rawValue) + [DataMode.automatic]))
    var mode: String?

    @Option(
        help: ArgumentHelp(
            "CPUs that the queues' threads may run on, as in 0-1,3. (default: the CPUs from which the kernel gives "
                + "each queue requests)", valueName: "list"))
    var cpus: String?

    @Flag(
        help: ArgumentHelp(
            "Use the file although another device or program uses it.",
            discussion: "Two writers of the same bytes destroy each other's data, unless the content is made for that."
        ))
    var shared = false

    @OptionGroup var output: OutputOptions

    /// The manifests as text: help and checks have one source.
    private static var targetHelp: String {
        TargetList.all.map { target in
            let inputs = target.inputs.map { row("--" + $0.name, $0.help) }
            let options = target.options.map { option in
                row("--" + option.name, "\(option.help): \(option.range) (default: \(option.defaultText))")
            }
            return (["  \(target.name): \(target.summary)"] + inputs + options).joined(separator: "\n")
        }.joined(separator: "\n")
    }

    private static func row(_ name: String, _ text: String) -> String {
        "    \(name)\(String(repeating: " ", count: max(14 - name.count, 1)))\(text)"
    }

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        try maxIOSize?.checked("--max-io-size")
        let request = try self.request
        let plan: AddPlan
        do { plan = try AddPlan(request) } catch { throw CommandFailure(error) }
        let client = BrokerClient(environment: environment)
        if let (path, input) = try file(for: plan.target) {
            let backing = try BackingFile.open(
                path, readOnly: readOnly || input.isReadOnly, options: plan.options, hasTwin: input.hasTwin,
                shared: shared)
            var request = request
            if backing.readOnly { request.readOnly = true }
            request.fileName = Self.label(path)
            var told = backing.notices
            let smallest = ContentSectors.smallestBlock(of: backing.numbers[0])
            var content: ContentSectors?
            // Do not wait for a file that does not answer. But an unknown sector size is not 512.
            do throws(SystemError) {
                content = try ContentSectors.look(
                    at: path, offset: plan.options.offset, seconds: Self.lookSeconds)
            } catch {
                if plan.target.hasBlockSize, plan.options.blockSize == nil { told.append(Self.unseen(path, error)) }
            }
            if plan.target.hasBlockSize, let other = defaultBlockSize(plan.options, content, smallest) {
                request.options.append(OptionValue("block-size", String(other)))
                told.append(Self.followed(path, other))
            }
            let (device, notices) = try client.add(request, files: backing.numbers)
            told += content?.notice(path, blockSize: UInt64(device.blockSize), smallest: smallest).map { [$0] } ?? []
            // The broker has the same notice for a file without direct I/O.
            told += notices.filter { notice in !told.contains { $0.code == notice.code } }
            show(device, told, environment)
        } else {
            let (device, notices) = try client.add(request, files: [])
            show(device, notices, environment)
        }
        return .success
    }

    private func show(_ device: Device, _ notices: [Notice], _ environment: CommandEnvironment) {
        let console = environment.console
        var notices = notices
        if environment.host.kind(of: device.node, followsLinks: true) == nil {
            notices.append(
                Notice(
                    code: "node",
                    message:
                        "\(device.node) is on the host, and not in the /dev of this container: give the container the "
                        + "host's /dev, or this device"))
        }
        for notice in notices { console.error("ubd: note: " + notice.message.printable) }
        if output.asJSON {
            console.out(AddReply.added(device, notices: notices).json.indentedText)
        } else {
            console.out((device.link ?? device.node).printable)
            console.aside("ubd: " + Self.summary(device))
        }
    }

    /// The device in one line, with the values that ubd or the broker chose.
    static func summary(_ device: Device) -> String {
        let file = device.file.map { " \($0.printable)" } ?? ""
        let access = (device.readOnly ? ", read-only" : "") + (device.buffered ? ", buffered" : "")
        let queues = device.queues == 1 ? "1 queue" : "\(device.queues) queues"
        return "\(device.target)\(file), \(ByteSize.text(device.sizeBytes)) in blocks of \(device.blockSize)\(access), "
            + "mode \(device.mode.rawValue), \(queues) of \(device.depth) requests, recovery \(device.recovery.rawValue)"
    }

    /// The request to the broker, before the file is opened.
    var request: AddRequest {
        get throws(CommandFailure) {
            AddRequest(
                target: target, id: number, queues: queues, depth: depth,
                maxIOBytes: maxIOSize.map { Int64($0.bytes) }, readOnly: readOnly ? true : nil, mode: mode,
                recovery: recovery, ioTimeout: ioTimeout, cpus: cpus, options: try ofTarget.options)
        }
    }

    /// The file of a target, and its role; nil when the target takes none. So far an input is a file, and there is at
    /// most one (a test checks the manifests).
    private func file(for target: TargetManifest) throws(CommandFailure) -> (String, TargetInput)? {
        let input = target.inputs.first
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
    private static let lookSeconds = 3

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
