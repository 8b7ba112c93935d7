import Glibc
import SystemCalls

/// Lets a server finish what a dead worker had sent, before anybody else writes: what lies in a socket is still carried out,
/// seconds later where the server is slow, and would land on top of what a new worker wrote.
enum Barrier {
    /// Says on each connection that nothing more comes, and reads until the server has closed it, too. nbdkit and nbd-server
    /// answer everything first. qemu-nbd closes at once, with writes still under way.
    ///
    /// - Returns: false when a server did not close in time.
    static func run(_ sockets: [Int32], _ deadline: Deadline, _ attention: Attention) throws(SystemError) -> Bool {
        for socket in sockets { shutdown(socket, Int32(SHUT_WR)) }
        var isWhole = true
        for socket in sockets where try !drain(socket, deadline, attention) { isWhole = false }
        return isWhole
    }

    private static func drain(
        _ socket: Int32, _ deadline: Deadline, _ attention: Attention
    ) throws(SystemError) -> Bool {
        var bytes = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = recv(socket, &bytes, bytes.count, Int32(MSG_DONTWAIT))
            if count == 0 { return true }
            if count > 0 || errno == EINTR { continue }
            // A connection that is broken brings nothing more. What the server had received of it, nobody can know.
            guard errno == EAGAIN else { return true }
            do throws(SystemError) { try attention.wait(for: socket, POLLIN, deadline) } catch {
                if error.errno == ETIMEDOUT { return false }
                throw error
            }
        }
    }
}
