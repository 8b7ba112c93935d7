import ArgumentParser
import BrokerInterface
import Varlink

/// `ubd resize`: gives a live device another size.
struct ResizeCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "resize",
        abstract: "Change the size of a device while it is in use (Linux 6.16 and later).",
        discussion: """
            EXAMPLES
              truncate -s 2G disk.img && ubd resize -n 0     up to the file's end
              ubd resize -n 0 --size 1536M
              resize2fs /dev/ubdb0                           then the file system: as root when it is mounted;
                                                             as you when it is not, after 'e2fsck -f /dev/ubdb0'

            The device gets another worker, as by 'ubd upgrade': programs that use it see a pause and no error. A device
            of target nbd, and one with --recovery none, cannot be resized; one in batch mode (which --mode auto chooses
            since Linux 7.0) only with --recovery reissue, the default. A device of a partition cannot grow. A null
            device, a device of a partition, and one that was added with --size need --size. Before --shrink make the
            file system smaller: what is behind the new end is lost to the device. --shrink is refused while the device
            is mounted, swap or held.
            """)

    @Option(name: [.customShort("n"), .long], help: ArgumentHelp("N of /dev/ubdbN.", valueName: "id"))
    var number: UInt32

    @Option(help: ArgumentHelp("The new size. (default: up to the end of the file)", valueName: "bytes"))
    var size: ByteCount?

    @Flag(help: "The device may become smaller, if nobody uses it.")
    var shrink = false

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        try size?.checked("--size")
        let client = BrokerClient(environment: environment)
        guard let device = try client.list(id: number).first else { throw ListCommand.noSuchDevice(number) }
        if shrink { try DeleteCommand.refuseUse(of: device, client, doing: "become smaller") }
        let reply = try client.resize(
            ResizeRequest(
                id: device.id, generation: device.generation, sizeBytes: size.map { Int64($0.bytes) },
                shrink: shrink ? true : nil))
        if output.asJSON {
            environment.console.out(reply.json.indentedText)
        } else {
            environment.console.out(Self.line(reply).printable)
        }
        return .success
    }

    static func line(_ reply: ResizeReply) -> String {
        let (name, bytes) = (reply.device.link ?? reply.device.node, reply.device.sizeBytes)
        return bytes == reply.previousBytes
            ? "\(name): has \(bytes) bytes already"
            : "\(name): \(bytes) bytes (\(ByteSize.text(bytes))) instead of \(reply.previousBytes)"
    }
}
