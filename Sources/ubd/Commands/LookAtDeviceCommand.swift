import ArgumentParser
import Glibc
import SystemCalls

/// The helper process of `ubd add` and `ubd partitions`; not for people. On a disk that hangs a read can't be ended from
/// outside, and who waits for it could not end either.
struct LookAtDeviceCommand: UBDCommand {
    static let name = "look-at-device"
    static let configuration = CommandConfiguration(
        commandName: name, abstract: "Tell the sector size of what is on a file (used by 'ubd add').",
        shouldDisplay: false)

    @Option var offset: UInt64 = 0
    @Argument var path: String

    /// Prints ContentSectors.line, or nothing.
    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        do throws(SystemError) {
            let file = try FileDescriptor.open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY)
            if let found = ContentSectors(of: file.raw, offset: offset) { environment.console.out(found.line) }
            return .success
        } catch { throw CommandFailure(error, remedy: "see 'ubd list'") }
    }
}

extension ContentSectors {
    /// What the helper prints of it, and `init(line:)` reads.
    var line: String {
        switch self {
        case .table(let bytes): "table \(bytes)"
        case .fileSystem(let name, let bytes): "fileSystem \(bytes) \(name)"
        }
    }

    init?(line: Substring) {
        let words = line.split(separator: " ", maxSplits: 2)
        guard words.count >= 2, let bytes = UInt64(words[1]) else { return nil }
        switch (words[0], words.count) {
        case ("table", 2): self = .table(bytes)
        case ("fileSystem", 3): self = .fileSystem(String(words[2]), bytes)
        default: return nil
        }
    }

    /// Has a helper look at a file from `offset` (bytes) on. nil in `found` when there is nothing to tell.
    ///
    /// - Throws: SystemError, ETIMEDOUT when the file does not answer.
    static func look(
        at path: String, offset: UInt64, _ environment: CommandEnvironment, seconds: Int
    ) throws(SystemError) -> ContentSectors? {
        let arguments = ["ubd", LookAtDeviceCommand.name, "--offset", "\(offset)", "--", path]
        let helper = try HelperProcess(environment.executable, arguments)
        guard let printed = try helper.output(most: 1024, Deadline(seconds: seconds)) else {
            throw SystemError("read \(path)", ETIMEDOUT)
        }
        return printed.text.split(whereSeparator: \.isNewline).first.flatMap(ContentSectors.init(line:))
    }
}
