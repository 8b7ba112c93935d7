import ArgumentParser
import Glibc

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
        if let header { words += [Array("--header".utf8CString), header.systemPath] }
        if let keyFile { words += [Array("--key-file".utf8CString), keyFile.systemPath] }
        if descriptor != nil { words.append(Array("--key-on-4".utf8CString)) }
        return words
    }

    /// The open file with the key; nil when it comes another way.
    func keyDescriptor() throws(CommandFailure) -> Int32? {
        guard let descriptor else { return nil }
        guard keyFile == nil else {
            throw CommandFailure(
                .usage, "Usage", "both --key-file and --key-fd name a key", remedy: "give one of them")
        }
        guard let number = Int32(descriptor), number >= 0, fcntl(number, F_GETFD) >= 0 else {
            throw CommandFailure(
                .usage, "Usage", "--key-fd can not be '\(descriptor)': no such file is open",
                remedy: "open it first, as in '--key-fd 5 5<key'")
        }
        return number
    }
}

extension KeyOptions {
    init(_ line: inout PlainLine) {
        keyFile = line.text("--key-file")
        descriptor = line.text("--key-fd")
        header = line.text("--header")
    }
}
