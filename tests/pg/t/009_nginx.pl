# nginx serves from the engine that PostgreSQL owns: the same answers, one prefix cache for each tenant, and the engine's end in between.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::RealBin/..";
use JSON::PP;
use MixtralTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $nginx = (grep { -x } map { "$_/nginx" } split(/:/, $ENV{PATH}), '/usr/sbin')[0];
plan skip_all => 'nginx, its module or curl is not there' unless $nginx && -e $ENV{MX_NGINX_MODULE} && !system('command -v curl >/dev/null');

my $folder = $PostgreSQL::Test::Utils::tmp_check;
my ($engine_socket, $http_socket) = ("$folder/engine.sock", "$folder/http.sock");
my $node = new_cluster('nginx', 'mixtral.model' => 'tiny=' . model('tiny'), 'mixtral.listen' => "$engine_socket mode=0600");
my $question = 'A question that is long enough to fill a few blocks of the pool. ' x 3;
append_to_file("$folder/nginx.conf", qq{
	load_module $ENV{MX_NGINX_MODULE};
	daemon off; worker_processes 2; pid $folder/nginx.pid; error_log $folder/nginx.log info;
	events {}
	http {
		access_log off;
		client_body_temp_path $folder/body; proxy_temp_path $folder/p; fastcgi_temp_path $folder/f; uwsgi_temp_path $folder/u; scgi_temp_path $folder/s;
		mixtral_engine main unix:$engine_socket;
		server { listen unix:$http_socket; location /v1/ { mixtral_api main; mixtral_keys off; } }
	}
});

# (status, body) of a request; without a body it is a GET.
sub http
{
	my ($path, $body) = @_;
	my ($out, $err) = ('', '');
	my @data = $body ? ('-d', encode_json($body)) : ();
	IPC::Run::run([ 'curl', '-sS', '--max-time', 60, '--unix-socket', $http_socket, '-w', "\n%{http_code}", @data, "http://x/v1/$path" ],
		'<', '/dev/null', '>', \$out, '2>', \$err) or return (0, $err);
	my ($json, $status) = $out =~ /^(.*)\n(\d+)$/s;
	return ($status, decode_json($json));
}

sub chat { return http('chat/completions', { messages => [ { role => 'user', content => $question } ], max_tokens => 12, temperature => 0, ignore_eos => JSON::PP::true }); }

sub in_sql
{
	my $text = $node->safe_psql('postgres', "SELECT mixtral_chat('$question', '{\"ignore_eos\": true}', max_tokens => 12, temperature => 0)");
	utf8::decode($text);
	return $text;
}

my $in_sql = in_sql();
ok(wait_for(sub { -S $engine_socket }), 'the first call in SQL brings engine and socket');
my $server = IPC::Run::start([ $nginx, '-p', $folder, '-c', "$folder/nginx.conf", '-e', "$folder/nginx.log" ], '<', '/dev/null', '>', '/dev/null', '2>', '/dev/null');
ok(wait_for(sub { (http('models'))[0] eq '200' }), 'nginx finds it');
is((http('models'))[1]{data}[0]{id}, 'tiny', '... with its model');
my ($status, $answer) = chat();
is($status, 200, 'a chat over HTTP');
is($answer->{choices}[0]{message}{content}, $in_sql, '... has the answer that it has in SQL');
is($answer->{usage}{prompt_tokens_details}{cached_tokens}, 0, '... and nothing of what a role has asked, which is another tenant');
cmp_ok((chat())[1]{usage}{prompt_tokens_details}{cached_tokens}, '>', 0, 'the same again is in the cache');
my $done = figure($node, 'requests_done');
chat();
cmp_ok(figure($node, 'requests_done'), '>', $done, 'SQL sees in its statistics what HTTP has asked');
kill 'KILL', engine_of($node);
($status, $answer) = chat();
is($status, 200, 'the engine is killed: a request waits for the next one');
is($answer->{choices}[0]{message}{content}, $in_sql, '... and has the same answer');
$node->stop;
is((chat())[0], 503, 'PostgreSQL is shut down: 503');
$node->start;
is(in_sql(), $in_sql, '... and started again');
ok(wait_for(sub { (chat())[0] eq '200' }), '... it serves nginx again, which has noticed nothing');
kill 'QUIT', slurp_file("$folder/nginx.pid") + 0;
ok($server->finish, 'nginx ends well');
$node->stop;
done_testing();
