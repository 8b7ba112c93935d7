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
              resize2fs /dev/ubdb0                           the file system grows afterwards, mounted or not

            The device gets another worker, as by 'ubd upgrade': programs that use it see a pause and no error. A device
            that was added with --recovery none, and one of target nbd, cannot be resized. A partition does not become
            larger. --shrink takes the end of a device that nobody uses; make what is on it smaller before.
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
