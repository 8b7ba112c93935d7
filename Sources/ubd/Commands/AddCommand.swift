import ArgumentParser
import BrokerInterface
import Varlink

/// `ubd add`: opens the file with the user's rights and has the broker make a device of it.
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
              ubd add -t null -n 7 -q 4 -d 256                 /dev/ubdb7, for measuring
              dev=$(ubd add -t loop -f disk.img) && mkfs.ext4 "$dev"

            The file is opened by you, not by the broker: what you may not read or write stays closed.
            Ctrl-C undoes an add that has not finished. Notes go to stderr as 'ubd: note: …';
            On a terminal, a line there says what the device became: size, mode, queues.
            """)

    @Option(
        name: [.short, .long], help: ArgumentHelp("What serves the device: null or loop.", valueName: "name"),
        completion: .list(TargetCatalog.all.map(\.name)))
    var target: String

    @Option(
        name: [.customShort("n"), .long],
        help: ArgumentHelp("N of /dev/ubdbN; without it the first free one.", valueName: "id"))
    var number: Int64?

    @Option(
        name: [.short, .long], help: ArgumentHelp("The file or block device behind it (loop).", valueName: "path"),
        completion: .file())
    var file: String?

    @Option(
        name: [.short, .long], help: ArgumentHelp("Hardware queues, at most one for each CPU.", valueName: "count"))
    var queues: Int64 = AddPlan.defaultQueues

    @Option(name: [.short, .long], help: ArgumentHelp("Requests at once in each queue.", valueName: "count"))
    var depth: Int64 = AddPlan.defaultDepth

    // By name: ArgumentParser would make --max-iosize of the property's.
    @Option(
        name: .customLong("max-io-size"),
        help: ArgumentHelp("Most bytes of one request, a multiple of 4K. (default: 512K)", valueName: "bytes"))
    var maxIOSize: ByteCount?

    @Flag(help: "Make a read-only device.")
    var readOnly = false

    @Option(help: ArgumentHelp("Where in the file the device begins (loop). (default: 0)", valueName: "bytes"))
    var offset: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Size of the device. (default: null 250G, loop up to the end of the file)", valueName: "bytes"))
    var size: ByteCount?

    @Option(
        help: ArgumentHelp(
            "Logical block size: 512, 1K, 2K or 4K. (default: 512; loop on a block device: that of the device; loop on a "
                + "file with a GPT of 4096-byte sectors: 4K)", valueName: "bytes"))
    var blockSize: ByteCount?

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
            "A worker that has work and does nothing for so long is replaced, 2 to 3600. (default: the broker's, 30)",
            valueName: "seconds"))
    var ioTimeout: Int64?

    @Option(
        help: ArgumentHelp(
            "How data and requests move: copy, zero-copy, batch, batch-zero-copy or auto. (default: auto)",
            discussion: DataMode.allCases.map { "\($0.rawValue): \($0.summary)" }.joined(separator: "\n")
                + "\nauto: the best of them that kernel, target and access policy allow", valueName: "mode"),
        completion: .list(DataMode.allCases.map(\.rawValue) + [DataMode.automatic]))
    var mode: String?

    @Option(
        help: ArgumentHelp(
            "CPUs that the queues' threads may run on, as in 0-1,3. (default: those that the kernel gives each "
                + "queue its requests from)", valueName: "list"))
    var cpus: String?

    @Flag(help: "Go through the page cache even when the file takes direct I/O (loop).")
    var buffered = false

    @Flag(
        help: ArgumentHelp(
            "Use the file although another device or program does (loop).",
            discussion: "Two who write the same bytes destroy each other's data, unless what is on it is made for that."
        ))
    var shared = false

    @OptionGroup var output: OutputOptions

    /// The catalog as text, so that the help can't tell something else than the checks.
    private static var targetHelp: String {
        TargetCatalog.all.map { target in
            let options = target.options.map { option in
                let name = "--" + option.name
                let padding = String(repeating: " ", count: max(14 - name.count, 1))
                return "    \(name)\(padding)\(option.help): \(option.range) (default: \(option.defaultText))"
            }
            return (["  \(target.name): \(target.summary)"] + options).joined(separator: "\n")
        }.joined(separator: "\n")
    }

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        for (name, value) in [
            ("--max-io-size", maxIOSize), ("--offset", offset), ("--size", size), ("--block-size", blockSize),
        ] { try value?.checked(name) }
        let plan: AddPlan
        do { plan = try AddPlan(request) } catch { throw CommandFailure(error) }
        let client = BrokerClient(environment: environment)
        if let path = try filePath(for: plan.target) {
            let backing = try BackingFile.open(path, readOnly: readOnly, options: plan.options, shared: shared)
            var request = self.request
            if backing.readOnly { request.readOnly = true }
            request.fileName = Self.label(path)
            var told = backing.notices
            let smallest = ContentSectors.smallestBlock(of: backing.numbers[0])
            // A file that does not answer is no reason to wait here, and nothing depends on it.
            let content = try? ContentSectors.look(
                at: path, offset: plan.options.offset, seconds: Self.lookSeconds)
            if let other = defaultBlockSize(plan.options, content, smallest) {
                request.options.append(OptionValue("block-size", String(other)))
                told.append(Self.followed(path, other))
            }
            let (device, notices) = try client.add(request, files: backing.numbers)
            told += content?.notice(path, blockSize: UInt64(device.blockSize), smallest: smallest).map { [$0] } ?? []
            // Of a file that can't be opened for direct I/O both have something to say.
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
                        "\(device.node) is on the host, and not in the /dev of this container: give it the host's /dev, or "
                        + "this device"))
        }
        for notice in notices { console.error("ubd: note: " + notice.message.printable) }
        if output.asJSON {
            console.out(AddReply.added(device, notices: notices).json.indentedText)
        } else {
            console.out((device.link ?? device.node).printable)
            console.aside("ubd: " + Self.summary(device))
        }
    }

    /// What the device became, in one line: what was chosen for its owner is named.
    static func summary(_ device: Device) -> String {
        let file = device.file.map { " \($0.printable)" } ?? ""
        let access = (device.readOnly ? ", read-only" : "") + (device.buffered ? ", buffered" : "")
        let queues = device.queues == 1 ? "1 queue" : "\(device.queues) queues"
        return "\(device.target)\(file), \(ByteSize.text(device.sizeBytes)) in blocks of \(device.blockSize)\(access), "
            + "mode \(device.mode.rawValue), \(queues) of \(device.depth) requests, recovery \(device.recovery.rawValue)"
    }

    /// What is asked of the broker, before the file is looked at.
    var request: AddRequest {
        var options: [OptionValue] = []
        for (name, value) in [("offset", offset), ("size", size), ("block-size", blockSize)] {
            if let value { options.append(OptionValue(name, String(value.bytes))) }
        }
        if buffered { options.append(OptionValue("buffered", "true")) }
        return AddRequest(
            target: target, id: number, queues: queues, depth: depth,
            maxIOBytes: maxIOSize.map { Int64($0.bytes) }, readOnly: readOnly ? true : nil, mode: mode,
            recovery: recovery, ioTimeout: ioTimeout, cpus: cpus,
            options: options)
    }

    private func filePath(for target: TargetDescription) throws(CommandFailure) -> String? {
        switch (target.needsFile, file) {
        case (true, nil):
            throw CommandFailure(
                .usage, "Usage", "target \(target.name) needs a file", remedy: "name it with --file")
        case (false, .some(let path)):
            throw CommandFailure(
                .usage, "Usage", "target \(target.name) takes no file, so '\(path)' would not be used",
                remedy: "leave --file out, or use --target loop")
        case (false, nil) where shared:
            throw CommandFailure(
                .usage, "Usage", "target \(target.name) takes no file, so there is nothing to share",
                remedy: "leave --shared out, or use --target loop")
        case (true, .some("")):
            throw CommandFailure(
                .usage, "Usage", "--file can not be ''", remedy: "name the file or block device behind the device")
        case (_, let path): return path
        }
    }

    /// How long the content of a file may take to be read.
    private static let lookSeconds = 3

    /// The block size in bytes when none was asked for and the content has a better one than the usual. A disk keeps its own.
    private func defaultBlockSize(_ options: TargetOptions, _ content: ContentSectors?, _ smallest: UInt64) -> UInt64? {
        options.blockSize == nil && smallest == 512 ? content?.otherThanUsual : nil
    }

    /// What its user is told of a device that has the blocks of its content.
    private static func followed(_ path: String, _ blockSize: UInt64) -> Notice {
        Notice(
            code: "block-size",
            message:
                "\(path) has \(ContentSectors.table(blockSize).text), so the device has blocks of \(blockSize) bytes; "
                + "--block-size 512 would make others")
    }

    /// The path as a label that the interface takes: its end when it is long, nothing that steers a terminal.
    static func label(_ path: String) -> String {
        var scalars = path.printable.unicodeScalars
        while String(scalars).utf8.count > AddPlan.longestFileName { scalars.removeFirst() }
        return String(scalars)
    }
}
