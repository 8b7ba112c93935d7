import ArgumentParser
import BrokerInterface
import Targets
import Varlink

/// `ubd recover`: opens a device's file again, with the user's rights, and hands it to the broker that lost it.
struct RecoverCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "recover",
        abstract: "Bring back the file of a device that waits for it.",
        discussion: """
            When the broker and a device's worker die together, the device's open file is lost with them. The device
            ('ubd list': recovering), and the programs that use it, wait until its owner brings the file again.

            EXAMPLES
              ubd recover -n 0                 opens the file of the name that 'ubd list' shows
              ubd recover -n 0 -f disk.img     the same file by another name, or from another directory

            Only the same file is accepted: the same inode, and large enough. After any other file the device waits on.
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

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let client = BrokerClient(environment: environment)
        guard let device = try client.list(id: number).first else { throw ListCommand.noSuchDevice(number) }
        let input = (try? TargetManifest.named(device.target))?.inputs.first
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
        if output.asJSON {
            environment.console.out(recovered.json.indentedText)
        } else {
            environment.console.out((recovered.link ?? recovered.node).printable)
        }
        return .success
    }

    /// The file to open. The name that the device was added with is only a label; the worker checks whether it is the
    /// right file. The user who added the device chose that text, so nobody else opens it: root would open any file, or
    /// wait for any server.
    private func path(for device: Device, _ environment: CommandEnvironment) throws(CommandFailure) -> String {
        if let file { return file }
        guard device.owner == environment.host.uid else {
            throw CommandFailure(
                .usage, "Usage",
                "device \(device.id) is another user's (uid \(device.owner)), who chose the name on record",
                remedy: "name its file with --file, or let its owner run 'ubd recover -n \(device.id)'")
        }
        guard let label = device.file else {
            throw CommandFailure(
                .usage, "Usage", "device \(device.id) has no file name on record", remedy: "name its file with --file")
        }
        return label
    }
}
