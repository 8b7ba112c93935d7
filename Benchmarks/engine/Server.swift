import CShims
import Glibc
import NBDProtocol

/// The other side of target nbd: a server with no disk, which answers all that has come with one write. It is this program once
/// more: valgrind runs one thread at a time, and none while another waits in io_uring_enter(2).
enum Server {
    /// The argument with which this program is a server on its standard input.
    static let argument = "--serve"

    /// Starts it and returns the client's end of the connection; -1 when that can't be done.
    static func start(program: String) -> Int32 {
        var pair: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0, &pair) == 0 else { return -1 }
        // Room for what a deep queue asks and gets, so that the server seldom waits.
        var bytes: Int32 = 1 << 20
        for end in pair { setsockopt(end, SOL_SOCKET, SO_SNDBUF, &bytes, socklen_t(MemoryLayout<Int32>.size)) }
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, pair[1], 0)
        var arguments: [UnsafeMutablePointer<CChar>?] = [strdup(program), strdup(argument), nil]
        defer { for text in arguments { free(text) } }
        var pid: pid_t = 0
        guard posix_spawn(&pid, program, &actions, nil, &arguments, nil) == 0 else { return -1 }
        close(pair[1])
        return pair[0]
    }

    /// Serves until the client has gone.
    static func serve(_ socket: Int32) {
        let size = 1 << 20
        let input = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 16)
        let output = UnsafeMutableRawPointer.allocate(byteCount: 8 * size, alignment: 16)
        memset(output, 0, 8 * size)
        var have = 0
        while true {
            let count = read(socket, input + have, size - have)
            if count <= 0 { return }
            have += count
            var done = 0
            var answered = 0
            while have - done >= NBD.requestBytes {
                let request = input + done
                let command = UInt16(bigEndian: request.loadUnaligned(fromByteOffset: 6, as: UInt16.self))
                let length = Int(UInt32(bigEndian: request.loadUnaligned(fromByteOffset: 24, as: UInt32.self)))
                let data = command == NBD.Command.write.rawValue ? length : 0
                guard have - done >= NBD.requestBytes + data else { break }
                let reply = output + answered
                reply.storeBytes(of: NBD.simpleReplyMagic.bigEndian, as: UInt32.self)
                reply.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
                reply.storeBytes(
                    of: request.loadUnaligned(fromByteOffset: 8, as: UInt64.self), toByteOffset: 8, as: UInt64.self)
                answered += NBD.simpleReplyBytes + (command == NBD.Command.read.rawValue ? length : 0)
                done += NBD.requestBytes + data
            }
            memmove(input, input + done, have - done)
            have -= done
            var sent = 0
            while sent < answered {
                let count = write(socket, output + sent, answered - sent)
                if count <= 0 { return }
                sent += count
            }
        }
    }
}
