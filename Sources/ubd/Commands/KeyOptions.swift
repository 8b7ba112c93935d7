import ArgumentParser
import Glibc
import SystemCalls

/// The options of `KeyOptions` on the command line.
struct KeyArguments: ParsableArguments {
    @Option(
        name: .customLong("key-file"),
        help: ArgumentHelp(
            "A file with the passphrase or key of a LUKS volume, all of its bytes. (crypt) (default: a passphrase is asked for "
                + "on the terminal, or is the first line of standard input)", valueName: "path"),
        completion: .file())
    var keyFile: String?

    @Option(
        name: .customLong("key-fd"),
        help: ArgumentHelp(
            "The same from an open file descriptor of this command, up to its end. (crypt)", valueName: "fd"))
    var keyDescriptor: Int32?

    @Option(
        help: ArgumentHelp("The file with a detached LUKS header. (crypt)", valueName: "path"), completion: .file())
    var header: String?

    var options: KeyOptions { KeyOptions(keyFile: keyFile, descriptor: keyDescriptor.map(String.init), header: header) }
}

/// How a LUKS volume is opened: for `ubd-crypt`, and never for the broker.
struct KeyOptions {
    var keyFile: String?
    /// As typed.
    var descriptor: String?
    var header: String?

    /// The first that was given.
    var given: String? {
        keyFile != nil ? "--key-file" : descriptor != nil ? "--key-fd" : header != nil ? "--header" : nil
    }

    /// What `ubd-crypt` is told of them.
    var words: [[CChar]] {
        var words: [[CChar]] = []
        if header != nil { words.append(Array("--header-on-6".utf8CString)) }
        if let keyFile { words += [Array("--key-on-4".utf8CString), keyFile.systemPath] }
        if descriptor != nil { words += ["--key-on-4", "--key-fd"].map { Array($0.utf8CString) } }
        return words
    }

    /// The open file with the key; nil when it comes another way. It is opened here and not by `ubd-crypt`, which has no other
    /// file of this process: a shell's `<(program)` is one.
    func openKey() throws(CommandFailure) -> FileDescriptor? {
        guard keyFile == nil || descriptor == nil else {
            throw CommandFailure(
                .usage, "Usage", "both --key-file and --key-fd name a key", remedy: "give one of them")
        }
        if let keyFile {
            do throws(SystemError) {
                return try FileDescriptor.open(bytes: keyFile.systemPath, name: keyFile, O_RDONLY | O_NOCTTY)
            } catch {
                throw CommandFailure(
                    .usage, "Usage", "\(keyFile): \(SystemError.message(error.errno))",
                    remedy: CommandFailure.limitRemedy(error.errno) ?? "give a key file that you may read")
            }
        }
        guard let descriptor else { return nil }
        guard let number = Int32(descriptor), number >= 0 else { throw Self.notOpen(descriptor) }
        let copy = fcntl(number, F_DUPFD_CLOEXEC, 0)
        guard copy >= 0 else {
            if let remedy = CommandFailure.limitRemedy(errno) {
                throw CommandFailure(.failed, "UnlockFailed", "--key-fd \(number) can not be used", remedy: remedy)
            }
            throw Self.notOpen(descriptor)
        }
        return FileDescriptor(owning: copy)
    }

    private static func notOpen(_ descriptor: String) -> CommandFailure {
        CommandFailure(
            .usage, "Usage", "--key-fd can not be '\(descriptor)': no such file is open",
            remedy: "open it first, as in '--key-fd 5 5<key'")
    }
}

extension KeyOptions {
    init(_ line: inout PlainLine) {
        keyFile = line.text("--key-file")
        descriptor = line.text("--key-fd")
        header = line.text("--header")
    }
}
