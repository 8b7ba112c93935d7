import ArgumentParser
import BrokerInterface
import Dialing
import Targets
import Varlink

/// `ubd recover`: opens a device's file again, with the user's rights, and hands it to the broker that lost it.
struct RecoverCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "recover",
        abstract: "Bring back the file, or the connections, of a device that waits for them.",
        discussion: """
            When the broker and a device's worker die together, the device's open file is lost with them, unless
            systemd has kept it ('ubd info': recovery). Without the file the device ('ubd list': recovering), and
            the programs that use it, wait until its owner brings the file again.
            A device of target nbd waits whenever its connections are lost. The program that 'ubd add' left behind makes
            new ones by itself. When that program is gone, this command does, and leaves a new one behind.

            EXAMPLES
              ubd recover -n 0                 opens the file, or dials the URI, that 'ubd list' shows
              ubd recover -n 0 -f disk.img     the same file by another name, or from another directory
              ubd recover -n 0 --uri nbd://other-host/export

            Only the same file is accepted: the same inode, and large enough. After any other file the device waits on.
            Of a server's export, size, flags and block sizes must be the same.
            Root must name the file of another user's device: that user chose the name on record.
            """)

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("N of /dev/ubdbN.", valueName: "id"))
    var number: UInt32

    @Option(
        name: [.short, .long],
        help: ArgumentHelp(
            "The file or block device behind it. (default: the name that the device was added with)", valueName: "path"),
        completion: .file())
    var file: String?

    @Flag(help: "Use the file although another device or program uses it.")
    var shared = false

    @Option(
        help: ArgumentHelp(
            "The export behind a device of target nbd. (default: the URI that 'ubd list' shows)", valueName: "uri"))
    var uri: String?

    @OptionGroup var dial: DialArguments

    @OptionGroup var key: KeyArguments

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        guard let device = try client.list(id: number).first else { throw ListCommand.noSuchDevice(number) }
        let target = try? TargetManifest.named(device.target)
        let input = target?.inputs.first
        if target?.takesSecret != true, let given = key.options.given {
            throw CommandFailure(
                .usage, "Usage", "device \(number) has no key, so \(given) would not be used", remedy: "leave it out")
        }
        if input?.role == .sockets { return try reconnect(device, client, environment) }
        if target?.hasBlockMap == true {
            throw CommandFailure(
                .usage, "Usage", "device \(number) is an overlay, and ubd keeps its layer: nothing can be brought",
                remedy: "if it is not live, what was written to it is lost: delete it and add another")
        }
        if input?.role == .memory {
            throw CommandFailure(
                .usage, "Usage", "device \(number) is a memory disk, and ubd keeps its memory: nothing can be brought",
                remedy: "if it is not live, its content is lost: delete it and add another")
        }
        if let given = uri.map({ _ in "--uri" }) ?? dial.options.given {
            throw CommandFailure(
                .usage, "Usage", "device \(number) has a file and no server, so \(given) would not be used",
                remedy: "leave it out")
        }
        if target?.takesSecret == true { return try unlockAgain(device, client, environment) }
        if target?.takesControl == true { return try bringBoth(device, client, environment) }
        var options = DeviceOptions()
        options.buffered = device.buffered
        let offset = UInt64(clamping: device.offset ?? 0)
        let claim = FileClaim(bytes: offset..<offset + device.sizeBytes)
        let request = RecoverRequest(id: device.id, generation: device.generation)
        let recovered = try client.recover(request) { () throws(CommandFailure) in
            // Opened only when the device really waits for it: otherwise the broker says first why it does not.
            let path = try path(for: device, environment)
            do throws(CommandFailure) {
                return try BackingFile.open(
                    path, readOnly: device.readOnly || input?.isReadOnly == true, options: options,
                    hasTwin: input?.hasTwin != false, shared: shared, claim: claim)
            } catch {
                guard file == nil, error.name == "BadFile", error.status == .usage else { throw error }
                var unknown = error
                unknown.remedy = "name its file with --file: '\(path)' is what it was called when the device was added"
                throw unknown
            }
        }
        show(recovered, environment)
        return .success
    }

    private func show(_ recovered: Device, _ environment: CommandEnvironment) {
        if output.asJSON {
            environment.console.out(recovered.json.indentedText)
        } else {
            environment.console.out((recovered.link ?? recovered.node).printable)
        }
    }

    /// The file of an encrypted volume, and its key.
    private func unlockAgain(
        _ device: Device, _ client: BrokerClient, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> ExitStatus {
        let request = RecoverRequest(id: device.id, generation: device.generation)
        // Nobody is asked for a passphrase in vain: the broker says why the device needs no key.
        guard device.state == .recovering else {
            _ = try client.recover(request, sockets: [])
            return .success
        }
        let path = try path(for: device, environment)
        let unlocked = try UnlockedKey.take(path, key.options, environment)
        let offset = UInt64(clamping: device.offset ?? 0)
        guard unlocked.volume.offset == offset, Int64(unlocked.volume.sectorSize) == device.blockSize else {
            throw CommandFailure(
                .failed, "BadFile", "the header is not that of device \(device.id): its data begins elsewhere",
                remedy: "name the volume, and the header, that it was added with")
        }
        let claim = FileClaim(bytes: offset..<offset + device.sizeBytes)
        let backing = try BackingFile.open(
            path, readOnly: device.readOnly, options: DeviceOptions(), hasTwin: false, shared: shared, claim: claim)
        try unlocked.check(isOf: backing, path)
        let recovered = try client.recover(request, sockets: backing.numbers + [unlocked.key.raw])
        show(recovered, environment)
        return .success
    }

    /// The file of a device that fails on purpose, and its control file.
    private func bringBoth(
        _ device: Device, _ client: BrokerClient, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> ExitStatus {
        let request = RecoverRequest(id: device.id, generation: device.generation)
        let path = try path(for: device, environment)
        let control = try FaultControlFile.find(device)
        let offset = UInt64(clamping: device.offset ?? 0)
        let claim = FileClaim(bytes: offset..<offset + device.sizeBytes)
        let backing = try BackingFile.open(
            path, readOnly: device.readOnly, options: DeviceOptions(), hasTwin: false, shared: shared, claim: claim)
        let recovered = try client.recover(request, sockets: backing.numbers + [control.raw])
        show(recovered, environment)
        return .success
    }

    /// Fresh connections, and a program that keeps the device.
    private func reconnect(
        _ device: Device, _ client: BrokerClient, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> ExitStatus {
        guard file == nil, !shared else {
            throw CommandFailure(
                .usage, "Usage",
                "device \(number) has a server and no file, so \(shared ? "--shared" : "--file") would not "
                    + "be used", remedy: "leave it out; a server is named with --uri")
        }
        let request = RecoverRequest(id: device.id, generation: device.generation)
        // A server may take one client at a time: one whose device has its connections is not dialled. The broker says why not.
        guard device.state == .recovering else {
            _ = try client.recover(request, sockets: [])
            return .success
        }
        try checkTurn(device, environment)
        let place: String
        if let uri {
            place = uri
        } else {
            place = try label("server", of: device, environment, remedy: "name its server with --uri")
        }
        var words = DialProcess.words(
            connections: Int(device.queues), dial.options, restarts: false, uri: place, command: [], environment)
        if uri == nil { words.insert(Array("--recorded".utf8CString), at: 0) }
        let dialer = try DialProcess(words, environment)
        let answer = try dialer.answer(environment)
        var full = request
        full.options = answer.export.options.map { OptionValue($0.name, $0.value) }
        let recovered = try client.recover(full, sockets: answer.sockets.numbers)
        if let notice = dialer.keep(KeepOrder(id: device.id, generation: device.generation), environment) {
            environment.console.error("ubd: note: " + notice.message)
        }
        show(recovered, environment)
        return .success
    }

    /// Fails when somebody else connects this device to its server. Only the keeper has the old connections, so only it can let the
    /// server finish what that had received: a late write would land on top of a newer one.
    private func checkTurn(_ device: Device, _ environment: CommandEnvironment) throws(CommandFailure) {
        guard device.owner == environment.host.uid else {
            throw CommandFailure(
                .notPermitted, "NotPermitted",
                "not permitted: device \(device.id) has connections of its owner's (uid \(device.owner))",
                remedy: "let its owner run 'ubd recover -n \(device.id)'")
        }
        guard let keeper = device.keeper else { return }
        throw CommandFailure(
            .busy, "Busy", "device \(device.id) has a keeper (process \(keeper)), which makes its connections",
            remedy: "wait ('journalctl -t ubd-nbd' says what it does), or end it ('kill \(keeper)') and try again")
    }

    /// The file to open. The name that the device was added with is only a label; the worker checks whether it is the
    /// right file. The user who added the device chose that text, so nobody else opens it: root would open any file, or
    /// wait for any server.
    private func path(for device: Device, _ environment: CommandEnvironment) throws(CommandFailure) -> String {
        if let file { return file }
        return try label("file", of: device, environment, remedy: "name its file with --file")
    }

    /// `kind`: what the name is of, for the refusal.
    private func label(
        _ kind: String, of device: Device, _ environment: CommandEnvironment, remedy: String
    ) throws(CommandFailure) -> String {
        guard device.owner == environment.host.uid else {
            throw CommandFailure(
                .usage, "Usage",
                "device \(device.id) is another user's (uid \(device.owner)), who chose the name on record",
                remedy: "\(remedy), or let its owner run 'ubd recover -n \(device.id)'")
        }
        guard let label = device.file else {
            throw CommandFailure(
                .usage, "Usage", "device \(device.id) has no \(kind) name on record", remedy: remedy)
        }
        return MountMark.removed(label)
    }
}
