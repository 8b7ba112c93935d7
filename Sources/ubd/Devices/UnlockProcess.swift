import BrokerInterface
import Dialing
import Glibc
import Programs
import SystemCalls

/// A volume that `ubd-crypt` has opened: what its header says, and the memfd with its key.
struct UnlockedKey: ~Copyable {
    let volume: UnlockedVolume
    let key: FileDescriptor
    /// The volume's file, in which the header was read.
    let status: stat
    /// As long as it is open, no other file gets its inode's number.
    private let file: FileDescriptor

    /// Starts a `ubd-crypt` and waits for its end, as long as its user needs to type.
    static func take(
        _ path: String, _ options: KeyOptions, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> UnlockedKey {
        let file = try openRegular(path, "--file")
        var status = stat()
        guard fstat(file.raw, &status) == 0 else { throw noAnswer }
        let channel = try start(path, file.raw, options, environment)
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
            return UnlockedKey(volume: volume, key: FileDescriptor(owning: key), status: status, file: file)
        }
    }

    /// The header is another file's when this one is not that in which it was read: somebody has replaced it meanwhile.
    func check(isOf backing: borrowing BackingFile, _ path: String) throws(CommandFailure) {
        var opened = stat()
        guard let number = backing.numbers.first, fstat(number, &opened) == 0, opened.st_dev == status.st_dev,
            opened.st_ino == status.st_ino
        else {
            throw CommandFailure(
                .failed, "BadFile", "\(path) was replaced by another file while it was being opened",
                remedy: "try again when no program replaces it")
        }
    }

    /// libcryptsetup would wait for a FIFO, and the worker serves no disk.
    private static func openRegular(_ path: String, _ option: String) throws(CommandFailure) -> FileDescriptor {
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
        return file
    }

    /// Returns this side of the pair.
    private static func start(
        _ path: String, _ file: Int32, _ options: KeyOptions, _ environment: CommandEnvironment
    ) throws(CommandFailure) -> FileDescriptor {
        let executable = environment.unlocker ?? Installation.unlocker
        var header: FileDescriptor?
        if let path = options.header { header = try openRegular(path, "--header") }
        let key = try options.openKey()
        let words = ["ubd-crypt", "--file"].map { Array($0.utf8CString) } + [path.systemPath] + options.words
        do throws(SystemError) {
            let null = try FileDescriptor.null()
            var pair = try makeMessagePair()
            let (none, end) = (null.raw, pair.second.raw)
            // In the order of `dialDescriptor`, `unlockKeyDescriptor` and so on.
            let files = [end, number(of: key) ?? none, file, number(of: header) ?? none]
            _ = try startProgram(
                executable, words, files: [STDIN_FILENO, none, STDERR_FILENO] + files, inheritsEnvironment: true)
            // Its death must end the pair.
            pair.second = null
            return pair.first
        } catch {
            throw CommandFailure(
                .failed, "UnlockFailed", "\(executable): \(SystemError.message(error.errno))",
                remedy: CommandFailure.limitRemedy(error.errno) ?? "run 'make install' as root: it belongs to ubd")
        }
    }

    private static func number(of file: borrowing FileDescriptor?) -> Int32? {
        switch file {
        case .some(let file): file.raw
        case .none: nil
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
