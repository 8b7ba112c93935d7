import Dialing
import Glibc
import SystemCalls

/// Where the passphrase comes from.
enum PassphraseSource {
    /// A terminal, three times, or one line of standard input.
    case person
    /// All bytes of the open file `unlockKeyDescriptor`; its name, for people.
    case file(name: String)

    /// Bytes: as cryptsetup's limit for key files.
    static let longest = 8 << 20
    /// Bytes of a line: as cryptsetup's limit for typed passphrases.
    static let longestLine = 512
    private static let attempts = 3

    /// Unlocks the volume, and returns its key.
    func unlock(_ volume: borrowing LUKSVolume) throws(DialFailure) -> VolumeKey {
        switch self {
        case .file(let name): return try volume.key(try Self.readAll(unlockKeyDescriptor, name))
        case .person:
            guard isatty(STDIN_FILENO) == 1 else { return try volume.key(try Self.readLine()) }
            return try askThreeTimes(volume)
        }
    }

    private func askThreeTimes(_ volume: borrowing LUKSVolume) throws(DialFailure) -> VolumeKey {
        var left = Self.attempts
        while true {
            let passphrase = try Terminal.ask("Passphrase for \(volume.name): ")
            do throws(DialFailure) { return try volume.key(passphrase) } catch {
                left -= 1
                guard error.kind == .refused, left > 0 else { throw error }
                Terminal.say("No key slot opens with this passphrase.\n")
            }
        }
    }

    private static func readAll(_ file: Int32, _ name: String) throws(DialFailure) -> Secret {
        var secret = try Secret(capacity: longest + 1)
        while secret.count <= longest {
            let room = secret.room()
            let got = read(file, room.baseAddress, room.count)
            if got < 0, errno == EINTR { continue }
            guard got >= 0 else {
                throw DialFailure(
                    .usage, "\(name) can not be read: \(SystemError.message(errno))",
                    remedy: "give a key that can be read")
            }
            if got == 0 { return secret }
            secret.count += got
        }
        throw DialFailure(
            .usage, "\(name) has more than \(longest) bytes", remedy: "give a key file of at most 8 MiB")
    }

    /// One line of standard input, without its end, as cryptsetup reads it from a pipe.
    private static func readLine() throws(DialFailure) -> Secret {
        var secret = try Secret(capacity: longestLine + 1)
        while secret.count <= longestLine {
            let got = read(STDIN_FILENO, secret.memory.baseAddress! + secret.count, 1)
            if got < 0, errno == EINTR { continue }
            if got <= 0 || secret.memory[secret.count] == UInt8(ascii: "\n") {
                guard got >= 0, got == 1 || secret.count > 0 else {
                    throw DialFailure(
                        .usage, "standard input is no terminal and has no passphrase",
                        remedy: "give one by a pipe, or with --key-file")
                }
                return secret
            }
            secret.count += 1
        }
        throw DialFailure(
            .usage, "the passphrase has more than \(longestLine) bytes", remedy: "give a longer one with --key-file")
    }
}
