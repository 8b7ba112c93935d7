import BrokerInterface
import Dialing
import Glibc
import Programs
import SystemCalls

/// A volume that `ubd-crypt` has opened: what its header says, and the memfd with its key.
struct UnlockedKey: ~Copyable {
    let volume: UnlockedVolume
    let key: FileDescriptor

    /// Starts a `ubd-crypt` and waits for its end, as long as its user needs to type.
    static func take(
        _ path: String, _ options: KeyOptions, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> UnlockedKey {
        try checkIsRegular(path, "--file")
        if let header = options.header { try checkIsRegular(header, "--header") }
        let channel = try start(path, options, environment)
        var bytes = [UInt8](repeating: 0, count: longestDialMessage)
        let received = bytes.withUnsafeMutableBytes { buffer in
            try? receiveWithFiles(channel.raw, into: buffer, maximum: 1, peek: false)
        }
        guard let received, let reply = try? UnlockReply(bytes: Array(bytes.prefix(received.bytes))) else {
            throw noAnswer
        }
        switch reply {
        case .failed(let failure): throw refusal(failure)
        case .unlocked(let volume):
            guard let key = received.files.first else { throw noAnswer }
            return UnlockedKey(volume: volume, key: FileDescriptor(owning: key))
        }
    }

    /// libcryptsetup would wait for a FIFO, and the worker serves no disk.
    private static func checkIsRegular(_ path: String, _ option: String) throws(CommandFailure) {
        let file: FileDescriptor
        do throws(CommandFailure) { file = try BackingFile.openToLook(path) } catch {
            var failure = error
            if failure.name == "BadFile" { failure.remedy = "give a regular file to \(option)" }
            throw failure
        }
        var status = stat()
        guard fstat(file.raw, &status) == 0, status.st_mode & S_IFMT == S_IFREG else {
            throw CommandFailure(
                .usage, "BadFile", "\(path) is a block device, and target crypt serves volumes in regular files",
                remedy: "open a volume on a disk with cryptsetup, as root")
        }
    }

    /// Returns this side of the pair.
    private static func start(
        _ path: String, _ options: KeyOptions, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> FileDescriptor {
        let executable = environment.unlocker ?? Installation.unlocker
        let keyFile = try options.keyDescriptor()
        let words = ["ubd-crypt", "--file"].map { Array($0.utf8CString) } + [path.systemPath] + options.words
        do throws(SystemError) {
            let null = try FileDescriptor.null()
            var pair = try makeMessagePair()
            _ = try startProgram(
                executable, words,
                files: [STDIN_FILENO, null.raw, STDERR_FILENO, pair.second.raw, keyFile ?? null.raw],
                inheritsEnvironment: true)
            // Its death must end the pair.
            pair.second = null
            return pair.first
        } catch {
            throw CommandFailure(
                .failed, "UnlockFailed", "\(executable): \(SystemError.message(error.errno))",
                remedy: CommandFailure.limitRemedy(error.errno) ?? "run 'make install' as root: it belongs to ubd")
        }
    }

    /// Why the volume was not opened.
    private static func refusal(_ failure: DialFailure) -> CommandFailure {
        let (status, name): (ExitStatus, String) =
            switch failure.kind {
            case .usage: (.usage, "Usage")
            case .refused: (.notPermitted, "WrongKey")
            case .unsuitable: (.usage, "BadFile")
            case .host: (.hostLacksSomething, "HostLacksSomething")
            case .unreachable, .command: (.failed, "UnlockFailed")
            }
        return CommandFailure(status, name, failure.message, remedy: failure.remedy)
    }

    private static var noAnswer: CommandFailure {
        CommandFailure(
            .failed, "UnlockFailed", "ubd-crypt ended without saying why, or what it said can not be read",
            remedy: "use the ubd and ubd-crypt of one version, and see whether memory ran out ('journalctl -k')")
    }
}
